package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/config"
)

type configCmd struct {
	Check   configCheckCmd   `cmd:"" help:"Check a configuration file and the environment; show all errors at once."`
	Default configDefaultCmd `cmd:"" help:"Print the defaults, with comments."`
}

type configCheckCmd struct {
	File   string `arg:"" optional:"" help:"The file (default: the one that --config or KWAAI_CONFIG names)."`
	Config string `placeholder:"FILE" help:"The file, as in run."`
}

// checkDoc is the document of config check.
type checkDoc struct {
	Error  *api.ErrorBody  `json:"error,omitempty"`
	Errors config.Problems `json:"errors"`
}

// Run checks what a node would start with.
func (c *configCheckCmd) Run(a *app) error {
	path := c.File
	if path == "" {
		path = c.Config
	}
	_, err := config.Load(path, os.Environ())
	problems, isProblems := errors.AsType[config.Problems](err)
	if err != nil && !isProblems {
		return usageError(err.Error())
	}
	doc := checkDoc{Errors: config.Problems{}}
	if len(problems) > 0 {
		doc.Errors = problems
		doc.Error = &api.ErrorBody{Code: "INVALID_ARGUMENT", Message: fmt.Sprintf("%d errors in the configuration", len(problems))}
	}
	if err := a.print(doc, func(w io.Writer) {
		if len(problems) == 0 {
			_, _ = fmt.Fprintln(w, "the configuration is fine")
		}
		for _, p := range problems {
			_, _ = fmt.Fprintln(w, p.Error())
		}
	}); err != nil {
		return err
	}
	if len(problems) > 0 {
		return quiet{exitUsage}
	}
	return nil
}

type configDefaultCmd struct{}

// defaultDoc is the document of config default.
type defaultDoc struct {
	YAML string `json:"yaml"`
}

// Run prints the defaults.
func (configDefaultCmd) Run(a *app) error {
	text := string(config.Document())
	return a.print(defaultDoc{YAML: text}, func(w io.Writer) { _, _ = io.WriteString(w, text) })
}
