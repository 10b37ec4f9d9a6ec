package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kwaai/kwaaid/internal/api"
)

type resolveCmd struct {
	Names []string `arg:"" name:"name" help:"expert-N, N, or MODEL[@REVISION]/LAYER/INDEX."`
	join  `embed:""`
}

// Run resolves the names in their order; a name without a provider makes the exit code 1.
func (c *resolveCmd) Run(a *app) error {
	if err := checkNames(c.Names, false); err != nil {
		return err
	}
	s, err := c.open(a)
	if err != nil {
		return err
	}
	defer s.Close()
	found := make([]api.Resolved, 0, len(c.Names))
	missing := 0
	for _, n := range c.Names {
		r, err := s.Resolve(a.ctx, n)
		if err != nil {
			return err
		}
		if len(r.Providers) == 0 {
			missing++
		}
		found = append(found, r)
	}
	err = a.print(found, func(w io.Writer) {
		for _, r := range found {
			title := r.Expert.String()
			if r.Name != "" {
				title += " (" + r.Name + ")"
			}
			fmt.Fprintf(w, "%s  key %s\n", title, r.Key)
			if len(r.Providers) == 0 {
				fmt.Fprintln(w, "  nobody hosts it")
				continue
			}
			rows := [][]string{{"  PEER", "SOURCE", "AGE", "BREAKER", "RTT", "ADDRESSES"}}
			for _, p := range r.Providers {
				age := time.Duration(p.AgeS * float64(time.Second)).Round(time.Second)
				rows = append(rows, []string{"  " + p.Peer, p.Source, age.String(), p.Breaker, optionalMillis(p.RTTMS), strings.Join(p.Addrs, " ")})
			}
			table(w, rows)
		}
	})
	if err == nil && missing > 0 {
		return quiet{exitFailed}
	}
	return err
}
