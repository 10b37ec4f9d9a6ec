package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/automaxprocs/maxprocs"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/config"
	"github.com/kwaai/kwaaid/internal/node"
	"github.com/kwaai/kwaaid/internal/p2p"
)

type runCmd struct {
	Config    string   `placeholder:"FILE" help:"Configuration file (default: the one that KWAAI_CONFIG names, else none)."`
	Data      string   `placeholder:"DIR" help:"Directory of the key, the peer cache and the DHT's records."`
	Swarm     string   `placeholder:"NAME" help:"Name of the swarm."`
	Listen    []string `placeholder:"MULTIADDR" help:"Address to listen on; may be repeated."`
	Bootstrap []string `placeholder:"MULTIADDR" help:"Peer to join by, with /p2p/; may be repeated."`
	Announce  []string `placeholder:"MULTIADDR" help:"Address to announce instead of those found; may be repeated."`
	GRPC      string   `name:"grpc" placeholder:"HOST:PORT" help:"gRPC address."`
	Expert    []string `sep:"none" placeholder:"SPEC" help:"Expert to host, such as id=7,kind=identity,hidden=1024 or checkpoint=DIR,layers=0-3; may be repeated."`
	LogLevel  string   `placeholder:"LEVEL" help:"trace, debug, info, warn or error."`
	KeepGoing bool     `help:"Start with the other experts when one cannot be loaded."`
}

// overrides returns what stands on the command line, to go before file and environment.
func (c *runCmd) overrides(a *app) []config.Override {
	var list []config.Override
	add := func(path, flag string, values ...string) {
		if len(values) > 0 && values[0] != "" {
			list = append(list, config.Override{Path: path, Values: values, Source: "--" + flag})
		}
	}
	add("data", "data", c.Data)
	add("swarm", "swarm", c.Swarm)
	add("listen", "listen", c.Listen...)
	add("bootstrap", "bootstrap", c.Bootstrap...)
	add("announce", "announce", c.Announce...)
	add("api", "api", a.API)
	add("grpc", "grpc", c.GRPC)
	add("experts", "expert", c.Expert...)
	add("log.level", "log-level", c.LogLevel)
	return list
}

// Run runs the node until the first signal, and then drains it; a second signal ends the process at once.
func (c *runCmd) Run(a *app) error {
	// Go ends a program whose stdout or stderr nobody reads any more. That who reads the log has died is no reason for a host to die.
	signal.Ignore(syscall.SIGPIPE)
	cfg, err := config.Load(c.Config, os.Environ(), c.overrides(a)...)
	if err != nil {
		return configError(err)
	}
	log, line := a.logger(cfg.Log)
	heedCPULimit(log)
	p2p.BridgeLogs(log)
	options := node.Options{KeepGoing: c.KeepGoing}
	if line != nil {
		options.Progress = line.loading
	}
	n, err := node.New(cfg, version(), log, options)
	if err != nil {
		return err
	}
	a.announceNode(n.Up(), log)
	err = n.Run(a.ctx)
	if errors.Is(err, node.ErrCannotLoad) {
		return usage{api.NewError("INVALID_ARGUMENT", err.Error(), err)}
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// heedCPULimit has Go use as many threads as a cgroup allows CPUs, one too. By itself Go uses two then, which together use up the CPU time of a
// period in half of it and stand still for the rest, with every call that they are at.
func heedCPULimit(log zerolog.Logger) {
	round := func(quota float64) int { return min(int(math.Ceil(quota)), runtime.GOMAXPROCS(0)) }
	if _, err := maxprocs.Set(maxprocs.RoundQuotaFunc(round)); err != nil {
		log.Warn().Err(err).Msg("the limit of a cgroup on CPU time cannot be read")
	}
}

// announceNode tells where the node is and how others join: as a log line for machines, as text for people.
func (a *app) announceNode(up node.Up, log zerolog.Logger) {
	join := "" // nobody can by one that only dials
	if len(up.Addrs) > 0 {
		join = "kwaaid run --bootstrap " + up.Addrs[0]
	}
	log.Info().Str("peer", up.Peer).Strs("addrs", up.Addrs).Str("api", up.API).Str("grpc", up.GRPC).Str("join", join).Msg(node.UpMessage)
	if a.JSON {
		return
	}
	_, _ = fmt.Fprintf(a.stdout, "kwaaid %s is up as %s\n", version(), up.Peer)
	for _, addr := range up.Addrs {
		_, _ = fmt.Fprintf(a.stdout, "  address  %s\n", addr)
	}
	if up.API != "" {
		_, _ = fmt.Fprintf(a.stdout, "  status   http://%s/\n", up.API)
	}
	if join != "" {
		_, _ = fmt.Fprintf(a.stdout, "  others join with\n    %s\n", join)
	}
}

// logger writes to stderr, or with --json to stdout, where log lines are then all there is. On a terminal it writes above a line of progress, which
// is nil where there is no room for one.
func (a *app) logger(cfg config.Log) (_ zerolog.Logger, line *progressLine) {
	w := a.stderr
	if a.JSON {
		w = a.stdout
		a.lines = true
	}
	if p := a.progress(); !a.JSON && (cfg.Format == "console" || cfg.Format == "auto" && p.terminal) {
		w = zerolog.ConsoleWriter{Out: p, TimeFormat: time.TimeOnly, NoColor: !p.terminal}
		if p.terminal {
			line = p
		}
	}
	// Validated by config: an unknown level cannot come here.
	level, err := zerolog.ParseLevel(cfg.Level)
	if err != nil {
		level = zerolog.InfoLevel
	}
	return zerolog.New(w).Level(level).With().Timestamp().Logger(), line
}

// configError turns what is wrong with a configuration into a usage error that lists all of it.
func configError(err error) error {
	problems, ok := errors.AsType[config.Problems](err)
	if !ok {
		return usageError(err.Error())
	}
	lines := make([]string, 0, len(problems))
	for _, p := range problems {
		lines = append(lines, p.Error())
	}
	return usageError("configuration: " + strings.Join(lines, "\n  "))
}
