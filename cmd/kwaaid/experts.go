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
	return a.print(experts, func(w io.Writer) { printExperts(w, experts) })
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
