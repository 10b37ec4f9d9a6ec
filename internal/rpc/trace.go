package rpc

import (
	"context"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// traceparent carries a W3C trace context in a header's one field. Trace state is left behind.
type traceparent string

const traceparentKey = "traceparent"

// Get implements propagation.TextMapCarrier.
func (t *traceparent) Get(key string) string {
	if key == traceparentKey {
		return string(*t)
	}
	return ""
}

// Set implements propagation.TextMapCarrier.
func (t *traceparent) Set(key, value string) {
	if key == traceparentKey {
		*t = traceparent(value)
	}
}

// Keys implements propagation.TextMapCarrier.
func (t *traceparent) Keys() []string { return []string{traceparentKey} }

// traceparentOf returns the context's trace context, empty where nothing is traced.
func traceparentOf(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ""
	}
	var t traceparent
	propagation.TraceContext{}.Inject(ctx, &t)
	return string(t)
}

// withTraceparent makes the caller's span the parent of those begun under the context.
func withTraceparent(ctx context.Context, header string) context.Context {
	if header == "" {
		return ctx
	}
	t := traceparent(header)
	return propagation.TraceContext{}.Extract(ctx, &t)
}
