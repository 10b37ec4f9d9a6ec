package p2p

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/libp2p/go-libp2p/core/crypto"
)

// identityFile holds the node's Ed25519 private key as libp2p writes keys (a small protobuf message), mode 0600.
const identityFile = "identity.key"

// maxIdentityBytes is far above any encoding of an Ed25519 key: a PEM file takes 120 bytes.
const maxIdentityBytes = 4096

// ErrNoIdentity: the data directory holds no key yet. `kwaaid run` and `kwaaid identity` make one.
var ErrNoIdentity = errors.New("no key yet")

// ErrIdentityExists: there is a key already, and importing another would change who this node is.
var ErrIdentityExists = errors.New("there is a key already")

// IdentityPath returns where the key of a data directory is.
func IdentityPath(dir string) string { return filepath.Join(dir, identityFile) }

// LoadIdentity reads the key of a data directory. Without one the error matches ErrNoIdentity.
func LoadIdentity(dir string) (crypto.PrivKey, error) {
	path := IdentityPath(dir)
	data, err := readLimited(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: %w", path, ErrNoIdentity)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("key %s cannot be read: %w; run kwaaid as the user who made it, or give it to this one with chown", path, err)
	case err != nil:
		return nil, fmt.Errorf("key %s cannot be read: %w", path, err)
	}
	key, err := parseIdentity(data)
	if err != nil {
		return nil, fmt.Errorf("key %s is damaged: %w; put your copy back with `kwaaid identity --import FILE`, or move it away to start as a new peer", path, err)
	}
	return key, nil
}

// LoadOrMakeIdentity reads the key of a data directory, and makes one when there is none.
func LoadOrMakeIdentity(dir string) (crypto.PrivKey, error) {
	key, err := LoadIdentity(dir)
	if !errors.Is(err, ErrNoIdentity) {
		return key, err
	}
	key, err = NewIdentity()
	if err != nil {
		return nil, err
	}
	return key, writeIdentity(dir, key)
}

// NewIdentity makes a key that is kept nowhere: for a process that joins for one command.
func NewIdentity() (crypto.PrivKey, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	return key, err
}

// ImportIdentity takes the key in file over into the data directory: libp2p's encoding, that in base64, or PKCS #8 in PEM as
// `openssl genpkey -algorithm ed25519` writes it. A key that is there already stays, and the error matches ErrIdentityExists,
// unless replace is set. The caller holds the directory's lock.
func ImportIdentity(dir, file string, replace bool) (crypto.PrivKey, error) {
	data, err := readLimited(file)
	if err != nil {
		return nil, fmt.Errorf("key to import: %w", err)
	}
	key, err := parseIdentity(data)
	if err != nil {
		return nil, fmt.Errorf("key to import: %s: %w", file, err)
	}
	path := IdentityPath(dir)
	if _, err := os.Lstat(path); err == nil && !replace {
		return nil, fmt.Errorf("%s: %w: move it away first, this node would become another peer", path, ErrIdentityExists)
	}
	return key, writeIdentity(dir, key)
}

func writeIdentity(dir string, key crypto.PrivKey) error {
	data, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return err
	}
	if err := writeFileAtomic(IdentityPath(dir), data, 0o600); err != nil {
		return fmt.Errorf("key cannot be written: %w; check that the data directory %s is writable", err, dir)
	}
	return nil
}

// writeFileAtomic replaces a file as a whole: after a crash either the old or the new content is there.
func writeFileAtomic(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func readLimited(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxIdentityBytes {
		return nil, fmt.Errorf("%s is no key: expected a file of at most %d bytes", path, maxIdentityBytes)
	}
	return os.ReadFile(path)
}

// parseIdentity reads a private key in any of the forms that ImportIdentity takes.
func parseIdentity(data []byte) (crypto.PrivKey, error) {
	if block, _ := pem.Decode(data); block != nil {
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("the PEM block %q is no PKCS #8 private key: %w", block.Type, err)
		}
		std, ok := parsed.(ed25519.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("the PEM block holds a %T, expected an Ed25519 key", parsed)
		}
		return crypto.UnmarshalEd25519PrivateKey(std)
	}
	if raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(data))); err == nil && len(raw) > 0 {
		data = raw
	}
	key, err := crypto.UnmarshalPrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("it holds no libp2p private key: %w", err)
	}
	if _, ok := key.(*crypto.Ed25519PrivateKey); !ok {
		return nil, fmt.Errorf("it holds a key of type %s, expected Ed25519", key.Type())
	}
	return key, nil
}
