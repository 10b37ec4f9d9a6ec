// Command kwaaid hosts experts of Mixture-of-Experts models on a peer-to-peer network, and calls those of others.
//
// One file per command: flags in, one call, a table or a JSON document out, an exit code. output.go prints, swarm.go
// decides through which node a command reaches the swarm.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/wire"
)

// Exit codes, as in the contract.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// cli is what stands on the command line.
type cli struct {
	JSON     bool   `name:"json" help:"Print exactly one JSON document on stdout, also on failure."`
	API      string `name:"api" env:"KWAAI_API" placeholder:"HOST:PORT" help:"HTTP address of the node to use (default 127.0.0.1:7575)."`
	APIToken string `name:"api-token" env:"KWAAI_API_TOKEN" placeholder:"TOKEN" help:"Token of that node, if it wants one."`

	Run         runCmd         `cmd:"" help:"Run a node: host experts, announce them, answer calls."`
	Demo        demoCmd        `cmd:"" help:"Run a whole swarm on this machine and watch it work."`
	Call        callCmd        `cmd:"" help:"Make one forward pass of an expert."`
	Resolve     resolveCmd     `cmd:"" help:"Show who hosts an expert."`
	Experts     expertsCmd     `cmd:"" help:"List every expert known to the node."`
	Status      statusCmd      `cmd:"" help:"Show how the node is."`
	Peers       peersCmd       `cmd:"" help:"List the node's peers and what is known of them."`
	Load        loadCmd        `cmd:"" help:"Have the node host more experts."`
	Unload      unloadCmd      `cmd:"" help:"Have the node stop hosting an expert."`
	Bench       benchCmd       `cmd:"" help:"Make load, and measure."`
	Doctor      doctorCmd      `cmd:"" help:"Check everything that operators get wrong, and say what to do about it."`
	Identity    identityCmd    `cmd:"" help:"Print the node's peer ID; make or import its key."`
	Config      configCmd      `cmd:"" help:"Check a configuration file, or print the defaults."`
	Healthcheck healthcheckCmd `cmd:"" help:"Exit 0 when the node is ready (for containers)."`
	Version     versionCmd     `cmd:"" help:"Print the version."`
}

// app is what every command gets.
type app struct {
	*cli
	ctx    context.Context // ends at the first SIGINT or SIGTERM, or when the terminal is closed
	lines  bool            // stdout is a document a line: log lines, at last maybe that of a failure
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole program but for the process around it, so that tests can run it as they run the binary.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // not under nohup
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()
	// After the first signal the second one has its usual effect: it ends the process at once.
	defer context.AfterFunc(ctx, stop)()
	a := &app{cli: &cli{}, ctx: ctx, stdin: stdin, stdout: stdout, stderr: stderr}
	exited := -1 // what kong would have exited with, after printing help
	parser, err := kong.New(a.cli,
		kong.Name("kwaaid"),
		kong.Description("Hosts experts of Mixture-of-Experts models on a peer-to-peer network, and calls those of others."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code }),
	)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "kwaaid:", err) // a mistake in the tags above, which every test would meet
		return exitFailed
	}
	kctx, err := parser.Parse(args)
	switch {
	case exited >= 0:
		return exited
	case err != nil:
		// Parsing may have stopped before it came to the flag.
		a.JSON = a.JSON || slices.Contains(args, "--json")
		return a.fail(usageError(err.Error() + " (see kwaaid --help)"))
	}
	if err := checkAPI(kctx.Command(), a.API); err != nil {
		return a.fail(err)
	}
	if err := kctx.Run(a); err != nil {
		return a.fail(err)
	}
	return exitDone
}

// usage is a wrong command line or configuration: exit code 2.
type usage struct{ doc *api.Error }

func (u usage) Error() string { return u.doc.Error() }

func usageError(message string) error {
	return usage{api.NewError("INVALID_ARGUMENT", message, nil)}
}

func usagef(format string, args ...any) error { return usageError(fmt.Sprintf(format, args...)) }

// Unwrap lets errors.As find the document.
func (u usage) Unwrap() error { return u.doc }

// quiet is a failure whose document was printed already: only the exit code is left to give.
type quiet struct{ code int }

func (q quiet) Error() string { return fmt.Sprintf("exit code %d", q.code) }

// fail prints err, for people or as a document, and returns the exit code.
func (a *app) fail(err error) int {
	if q, ok := errors.AsType[quiet](err); ok {
		return q.code
	}
	doc, ok := errors.AsType[*api.Error](err)
	if !ok {
		doc = api.NewError(codeOf(err), err.Error(), err)
	}
	if a.JSON {
		if perr := a.document(doc); perr != nil {
			_, _ = fmt.Fprintln(a.stderr, "kwaaid:", perr)
		}
	}
	_, _ = fmt.Fprintln(a.stderr, "kwaaid:", strings.TrimSpace(err.Error()))
	for _, t := range doc.Attempts {
		_, _ = fmt.Fprintf(a.stderr, "  tried %s: %s after %s\n", shortPeer(t.Peer), t.Status, millis(t.MS))
	}
	if _, ok := errors.AsType[usage](err); ok {
		return exitUsage
	}
	return exitFailed
}

// codeOf names an error that no node sent.
func codeOf(err error) string {
	switch {
	case errors.Is(err, api.ErrNoNode):
		return "DIAL_FAILED"
	default:
		return wire.StatusOf(err).String()
	}
}
