package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kwaai/kwaaid/internal/api"
)

// healthTimeout is under the default interval of container health checks, which is 30 s.
const healthTimeout = 5 * time.Second

type healthcheckCmd struct{}

// readyDoc is the document of healthcheck.
type readyDoc struct {
	Ready bool           `json:"ready"`
	Error *api.ErrorBody `json:"error,omitempty"`
}

// Run exits 0 when the node is ready.
func (c *healthcheckCmd) Run(a *app) error {
	n := a.node()
	defer n.Close()
	ctx, cancel := context.WithTimeout(a.ctx, healthTimeout)
	defer cancel()
	r, err := n.Ready(ctx)
	if err == nil && r.Ready {
		return a.print(readyDoc{Ready: true}, func(w io.Writer) { fmt.Fprintln(w, "ready") })
	}
	body := api.ErrorBody{Code: "NOT_READY", Message: "not ready: " + strings.Join(r.Reasons, "; ")}
	if err != nil {
		body = api.ErrorBody{Code: codeOf(err), Message: err.Error()}
	}
	if perr := a.print(readyDoc{Error: &body}, func(io.Writer) {}); perr != nil {
		return perr
	}
	_, _ = fmt.Fprintln(a.stderr, "kwaaid:", body.Message)
	return quiet{exitFailed}
}
