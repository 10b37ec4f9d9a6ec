package main

import (
	"fmt"
	"io"
	"os"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/config"
)

type loadCmd struct {
	Spec string `arg:"" help:"What to host, as in run --expert: id=7,kind=identity,hidden=1024 or checkpoint=DIR,layers=0-3."`
}

// Run has the node load, and waits until the experts are ready.
func (c *loadCmd) Run(a *app) error {
	e, err := config.ParseExpert(c.Spec)
	if err != nil {
		return usagef("%s: %v", c.Spec, err)
	}
	dir, err := os.Getwd() // the node's working directory is another
	if err != nil {
		return err
	}
	n := a.node()
	defer n.Close()
	line := a.progress()
	line.set("loading %s ...", c.Spec)
	list, err := n.Load(a.ctx, api.LoadRequest{Spec: e.Rebase(dir).String()}, line.loading)
	line.clear()
	if err != nil {
		return err
	}
	return a.print(list, func(w io.Writer) { printExperts(w, list.Experts) })
}

type unloadCmd struct {
	Name string `arg:"" help:"expert-N, N, or MODEL[@REVISION]/LAYER/INDEX."`
}

// Run has the node unload; calls under way are answered first.
func (c *unloadCmd) Run(a *app) error {
	if err := checkNames([]string{c.Name}, false); err != nil {
		return err
	}
	n := a.node()
	defer n.Close()
	list, err := n.Unload(a.ctx, c.Name)
	if err != nil {
		return err
	}
	return a.print(list, func(w io.Writer) {
		for _, e := range list.Experts {
			fmt.Fprintf(w, "%s is no longer hosted here\n", e.Expert)
		}
	})
}
