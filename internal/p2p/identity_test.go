package p2p

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
)

func TestIdentity_IsMadeOnceAndKept(t *testing.T) {
	dir := t.TempDir()
	_, err := LoadIdentity(dir)
	require.ErrorIs(t, err, ErrNoIdentity)
	made, err := LoadOrMakeIdentity(dir)
	require.NoError(t, err)
	again, err := LoadOrMakeIdentity(dir)
	require.NoError(t, err)
	require.True(t, made.Equals(again))
	info, err := os.Stat(IdentityPath(dir))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())
	require.Equal(t, []string{identityFile}, names(t, dir), "no temporary file is left")
}

func TestIdentity_DamagedSaysWhatToDo(t *testing.T) {
	for name, content := range map[string]string{
		"empty":         "",
		"text":          "not a key",
		"cut":           string(libp2pKey(t)[:20]),
		"too large":     string(make([]byte, maxIdentityBytes+1)),
		"PEM of a cert": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(IdentityPath(dir), []byte(content), 0o600))
			_, err := LoadOrMakeIdentity(dir)
			require.ErrorContains(t, err, IdentityPath(dir))
			data, readErr := os.ReadFile(IdentityPath(dir))
			require.NoError(t, readErr)
			require.Equal(t, content, string(data), "a damaged key is never overwritten")
			if name != "too large" {
				require.ErrorContains(t, err, "kwaaid identity --import")
			}
		})
	}
}

func TestIdentity_OtherKeyTypesAreRefused(t *testing.T) {
	key, _, err := crypto.GenerateKeyPair(crypto.Secp256k1, 0)
	require.NoError(t, err)
	data, err := crypto.MarshalPrivateKey(key)
	require.NoError(t, err)
	_, err = parseIdentity(data)
	require.ErrorContains(t, err, "expected Ed25519")
}

func TestImportIdentity_TakesEveryForm(t *testing.T) {
	raw := libp2pKey(t)
	key, err := crypto.UnmarshalPrivateKey(raw)
	require.NoError(t, err)
	id, err := peer.IDFromPrivateKey(key)
	require.NoError(t, err)
	std, err := key.Raw()
	require.NoError(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(ed25519.PrivateKey(std))
	require.NoError(t, err)
	for name, data := range map[string][]byte{
		"libp2p": raw,
		"base64": []byte(base64.StdEncoding.EncodeToString(raw) + "\n"),
		"PEM":    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	} {
		t.Run(name, func(t *testing.T) {
			file, dir := filepath.Join(t.TempDir(), "key"), t.TempDir()
			require.NoError(t, os.WriteFile(file, data, 0o600))
			_, err := ImportIdentity(dir, file, false)
			require.NoError(t, err)
			loaded, err := LoadIdentity(dir)
			require.NoError(t, err)
			got, err := peer.IDFromPrivateKey(loaded)
			require.NoError(t, err)
			require.Equal(t, id, got)
			_, err = ImportIdentity(dir, file, false)
			require.ErrorIs(t, err, ErrIdentityExists)
			_, err = ImportIdentity(dir, file, true)
			require.NoError(t, err)
		})
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add(libp2pKey(f))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte("CAESQA=="))
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := parseIdentity(data)
		if err != nil {
			return
		}
		out, err := crypto.MarshalPrivateKey(key)
		require.NoError(t, err)
		again, err := parseIdentity(out)
		require.NoError(t, err)
		require.True(t, key.Equals(again))
	})
}

func libp2pKey(tb testing.TB) []byte {
	tb.Helper()
	key, err := NewIdentity()
	require.NoError(tb, err)
	data, err := crypto.MarshalPrivateKey(key)
	require.NoError(tb, err)
	return data
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}
