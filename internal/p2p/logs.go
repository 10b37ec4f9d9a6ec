package p2p

import (
	"context"
	"log/slog"

	golog "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p/gologshim"
	"github.com/rs/zerolog"
	"go.uber.org/zap/zapcore"
)

// BridgeLogs sends the logs of libp2p (slog) and of kad-dht (zap) into log. It changes the whole process, so a command calls it
// once, before the first host is made: libp2p's loggers keep the handler that they find at their first line.
// The libraries call "info" and "warn" what is daily life in an open swarm (a first node has nobody to ask, a stranger sends noise):
// that is debug here, their errors are warnings, their debug is trace.
func BridgeLogs(log zerolog.Logger) {
	gologshim.SetDefaultHandler(demoted{zerolog.NewSlogHandler(log)})
	bridge := &zapBridge{log: log}
	level := zapcore.DebugLevel
	for level < zapcore.FatalLevel && !bridge.Enabled(level) { // go-log complains about levels that its core does not take
		level++
	}
	golog.SetupLogging(golog.Config{Level: golog.LogLevel(level)}) // without outputs: only the core below writes
	golog.SetPrimaryCore(bridge)
}

// demoted lowers the level of every record.
type demoted struct{ slog.Handler }

// slogTrace is below slog's lowest named level; zerolog's handler takes it for its trace.
const slogTrace = slog.LevelDebug - 4

func demote(l slog.Level) slog.Level {
	switch {
	case l < slog.LevelInfo:
		return slogTrace
	case l < slog.LevelError:
		return slog.LevelDebug
	default:
		return slog.LevelWarn
	}
}

func (d demoted) Enabled(ctx context.Context, l slog.Level) bool {
	return d.Handler.Enabled(ctx, demote(l))
}

func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	r.Level = demote(r.Level)
	return d.Handler.Handle(ctx, r)
}

func (d demoted) WithAttrs(attrs []slog.Attr) slog.Handler {
	return demoted{d.Handler.WithAttrs(attrs)}
}
func (d demoted) WithGroup(name string) slog.Handler { return demoted{d.Handler.WithGroup(name)} }

// zapBridge is a zap core that writes to zerolog.
type zapBridge struct{ log zerolog.Logger }

// level maps zap's levels to ours, lowered as in demote.
func (*zapBridge) level(l zapcore.Level) zerolog.Level {
	switch {
	case l <= zapcore.DebugLevel:
		return zerolog.TraceLevel
	case l < zapcore.ErrorLevel:
		return zerolog.DebugLevel
	default:
		return zerolog.WarnLevel
	}
}

func (b *zapBridge) Enabled(l zapcore.Level) bool { return b.level(l) >= b.log.GetLevel() }

func (b *zapBridge) With(fields []zapcore.Field) zapcore.Core {
	return &zapBridge{log: b.log.With().Fields(fieldMap(fields)).Logger()}
}

func (b *zapBridge) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.Enabled(e.Level) {
		return checked.AddCore(e, b)
	}
	return checked
}

func (b *zapBridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	b.log.WithLevel(b.level(e.Level)).Str("logger", e.LoggerName).Fields(fieldMap(fields)).Msg(e.Message)
	return nil
}

func (*zapBridge) Sync() error { return nil }

func fieldMap(fields []zapcore.Field) map[string]any {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	return enc.Fields
}
