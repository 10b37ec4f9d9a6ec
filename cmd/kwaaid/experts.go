package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/kwaai/kwaaid/internal/api"
)

type expertsCmd struct {
	join `embed:""`
}

// Run lists the experts.
func (c *expertsCmd) Run(a *app) error {
	s, err := c.open(a)
	if err != nil {
		return err
	}
	defer s.Close()
	experts, err := s.Experts(a.ctx)
	if err != nil {
		return err
	}
	var layers []api.Layer
	if n, local := s.(*api.Client); local && !a.JSON { // a client of the swarm routes no layers
		if layers, err = n.Layers(a.ctx); err != nil {
			return err
		}
	}
	return a.print(experts, func(w io.Writer) {
		printExperts(w, experts)
		printLayers(w, layers)
	})
}

// printLayers lists the layers that the node routes, with how evenly its calls went to their experts.
func printLayers(w io.Writer, layers []api.Layer) {
	if len(layers) == 0 {
		return
	}
	rows := [][]string{{"LAYER", "HIDDEN", "EXPERTS", "TOP-K", "ROWS", "BALANCE", "BUSIEST"}}
	for _, l := range layers {
		if l.Error != "" {
			rows = append(rows, []string{l.Layer, "-", strconv.Itoa(l.Experts), "-", "-", "-", "cannot be routed: " + l.Error})
			continue
		}
		total, busiest := 0, 0
		for i, n := range l.RowsPerExpert {
			total += n
			if n > l.RowsPerExpert[busiest] {
				busiest = i
			}
		}
		balance, who := "-", "-"
		if total > 0 {
			balance, who = fmt.Sprintf("%.2f", l.Balance), fmt.Sprintf("%d (%d rows)", busiest, l.RowsPerExpert[busiest])
		}
		rows = append(rows, []string{l.Layer, strconv.Itoa(l.Hidden), strconv.Itoa(l.Experts), strconv.Itoa(l.TopK), strconv.Itoa(total), balance, who})
	}
	fmt.Fprintln(w)
	table(w, rows)
}

func printExperts(w io.Writer, experts []api.Expert) {
	if len(experts) == 0 {
		fmt.Fprintln(w, "no experts known; host one with `kwaaid load id=7,kind=identity,hidden=1024`")
		return
	}
	rows := [][]string{{"EXPERT", "NAME", "KIND", "HIDDEN", "DTYPE", "WHERE", "STATE", "PROVIDERS", "DIGEST"}}
	for _, e := range experts {
		state := string(e.State)
		if e.Error != "" {
			state += " (" + e.Error + ")"
		}
		rows = append(rows, []string{
			e.Expert.String(), dash(e.Name), dash(e.Kind), strconv.Itoa(e.Hidden), dash(e.DType),
			string(e.Where), state, strconv.Itoa(e.Providers), dash(e.Digest[:min(12, len(e.Digest))]),
		})
	}
	table(w, rows)
}
