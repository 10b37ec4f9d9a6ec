package main

import (
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/config"
	"github.com/kwaai/kwaaid/internal/doctor"
)

type doctorCmd struct {
	Config string `placeholder:"FILE" help:"Configuration file, as in run."`
	Data   string `placeholder:"DIR" help:"Data directory, as in run."`
}

// Run examines the node, and what one would meet here; a check that failed makes the exit code 1.
func (c *doctorCmd) Run(a *app) error {
	overrides := (&runCmd{Data: c.Data}).overrides(a)
	cfg, err := config.Load(c.Config, os.Environ(), overrides...)
	patient := doctor.Patient{Config: cfg, ConfigErr: err, API: a.API, Expected: a.API != "", Built: built()}
	token := a.APIToken
	if patient.API == "" {
		patient.API = defaultAPI
		if cfg != nil {
			patient.API = clientAddr(cfg.API)
		}
	}
	if token == "" && cfg != nil {
		token = cfg.APIToken
	}
	n := api.NewClient(patient.API, token)
	defer n.Close()
	patient.Node = n
	r := doctor.Examine(a.ctx, patient)
	if err := a.print(r, func(w io.Writer) { printReport(w, r) }); err != nil {
		return err
	}
	if r.Failed() > 0 {
		return quiet{exitFailed}
	}
	return nil
}

func printReport(w io.Writer, r doctor.Report) {
	hints := 0
	for _, c := range r.Checks {
		mark := "✓"
		switch {
		case !c.OK:
			mark = "✗"
		case c.Skipped:
			mark = "·"
		case c.Remedy != "":
			mark = "!"
			hints++
		}
		fmt.Fprintf(w, "%s %-15s %s\n", mark, c.Name, c.Detail)
		if c.Remedy != "" {
			fmt.Fprintf(w, "  %-15s → %s\n", "", c.Remedy)
		}
	}
	switch failed := r.Failed(); {
	case failed > 0:
		fmt.Fprintf(w, "\n%d of %d checks failed.\n", failed, len(r.Checks))
	case hints > 0:
		fmt.Fprintf(w, "\nNothing is wrong; %d hints.\n", hints)
	default:
		fmt.Fprintln(w, "\nNothing is wrong.")
	}
}

// built is when the commit was made that this program was made from; zero where the linker noted none.
func built() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil {
				return t
			}
		}
	}
	return time.Time{}
}
