package main

import (
	"fmt"
	"io"
	"runtime/debug"
)

// versionDoc is the document of version.
type versionDoc struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
	Libp2p  string `json:"libp2p"`
}

type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(a *app) error {
	v := readVersion()
	return a.print(v, func(w io.Writer) {
		fmt.Fprintf(w, "kwaaid %s (commit %s, %s, libp2p %s)\n", v.Version, dash(v.Commit), v.Go, v.Libp2p)
	})
}

// version is what the node says of itself to others.
func version() string { return readVersion().Version }

// readVersion reads what the Go linker noted in the binary.
func readVersion() versionDoc {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return versionDoc{Version: "unknown"}
	}
	v := versionDoc{Version: info.Main.Version, Go: info.GoVersion}
	if v.Version == "" || v.Version == "(devel)" {
		v.Version = "devel"
	}
	modified := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	if modified {
		v.Commit += "-dirty"
	}
	for _, d := range info.Deps {
		if d.Path == "github.com/libp2p/go-libp2p" {
			v.Libp2p = d.Version
		}
	}
	return v
}
