package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

type peersCmd struct {
	join `embed:""`
}

// Run lists the peers.
func (c *peersCmd) Run(a *app) error {
	s, err := c.open(a)
	if err != nil {
		return err
	}
	defer s.Close()
	peers, err := s.Peers(a.ctx)
	if err != nil {
		return err
	}
	return a.print(peers, func(w io.Writer) {
		if len(peers) == 0 {
			fmt.Fprintln(w, "no peers connected")
			return
		}
		rows := [][]string{{"PEER", "RTT", "EXPERTS", "BREAKER", "SUCCESS", "ADDRESSES"}}
		for _, p := range peers {
			rows = append(rows, []string{
				p.Peer, optionalMillis(p.RTTMS), strconv.Itoa(p.Experts), p.Breaker,
				fmt.Sprintf("%.0f%%", 100*p.Success), strings.Join(p.Addrs, " "),
			})
		}
		table(w, rows)
	})
}
