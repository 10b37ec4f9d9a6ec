package main

import (
	"fmt"
	"io"
	"os"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/config"
	"github.com/kwaai/kwaaid/internal/p2p"
)

type identityCmd struct {
	Data    string `placeholder:"DIR" help:"Data directory, as in run."`
	Config  string `placeholder:"FILE" help:"Configuration file, as in run."`
	Import  string `placeholder:"FILE" help:"Take this key over: libp2p's encoding, that in base64, or PKCS #8 in PEM."`
	Replace bool   `help:"With --import: replace the key that is there; the node becomes another peer."`
}

// identityDoc is the document of identity.
type identityDoc struct {
	Peer string `json:"peer"`
	Path string `json:"path"`
}

// Run prints the peer ID, and makes the key where there is none.
func (c *identityCmd) Run(a *app) error {
	overrides := (&runCmd{Data: c.Data}).overrides(&app{cli: &cli{}})
	cfg, err := config.Load(c.Config, os.Environ(), overrides...)
	if err != nil {
		return configError(err)
	}
	key, err := c.key(cfg.Data)
	if err != nil {
		return err
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return err
	}
	doc := identityDoc{Peer: id.String(), Path: p2p.IdentityPath(cfg.Data)}
	return a.print(doc, func(w io.Writer) { _, _ = fmt.Fprintf(w, "%s\n  key  %s\n", doc.Peer, doc.Path) })
}

// key reads the key; only to write one does it need the directory for itself.
func (c *identityCmd) key(dir string) (crypto.PrivKey, error) {
	if c.Import == "" {
		if key, err := p2p.LoadIdentity(dir); err == nil {
			return key, nil
		}
	}
	locked, err := p2p.OpenDataDir(dir)
	if err != nil {
		return nil, err
	}
	defer locked.Close() //nolint:errcheck // the lock ends with the process at the latest
	if c.Import != "" {
		return p2p.ImportIdentity(dir, c.Import, c.Replace)
	}
	return p2p.LoadOrMakeIdentity(dir)
}
