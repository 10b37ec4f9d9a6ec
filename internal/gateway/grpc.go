package gateway

import (
	"context"
	"errors"
	"math"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/types/known/durationpb"

	inferencepb "github.com/kwaai/kwaaid/proto/inference"
)

const (
	// streamsPerConnection bounds the calls that one connection has open: a message of each may be in memory.
	streamsPerConnection = 64
	// handshakeTimeout is for a client to send its preface and settings, which fit one packet.
	handshakeTimeout = 10 * time.Second
	// minPing is the shortest interval of pings that clients may send; Triton's client and grpc's defaults stay above it.
	minPing = 10 * time.Second
	// messageSlack is what a message of max_frame bytes of tensors may hold besides: names, shapes, parameters.
	messageSlack = 64 << 10
	// maxMessage bounds a failure's message, in bytes. It travels as a header, each byte beyond ASCII as three: gRPC's C core, which is under
	// Python's clients, takes 8 KiB for sure, and says INTERNAL in place of the status when there is more.
	maxMessage = 2 << 10
	// healthBeat is how often a watched health is looked at.
	healthBeat = time.Second
)

// newGRPCServer makes the server with all its services.
func (g *Gateway) newGRPCServer() *grpc.Server {
	most := int(min(g.cfg.MaxFrame+messageSlack, math.MaxInt32))
	methods := map[string]bool{} // of the services below
	s := grpc.NewServer(
		grpc.InTapHandle(g.admit(methods)),
		grpc.MaxRecvMsgSize(most),
		grpc.MaxSendMsgSize(most),
		grpc.MaxConcurrentStreams(streamsPerConnection),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxHeaderListSize(maxRequestHeader),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (reply any, err error) {
			err = g.answer(info.FullMethod, func() (err error) {
				reply, err = handle(ctx, req)
				return err
			})
			return reply, err
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			return g.answer(info.FullMethod, func() error { return handle(srv, stream) })
		}),
	)
	healthpb.RegisterHealthServer(s, &health{node: g.node, stopping: g.stopping, services: func(name string) bool {
		_, ok := s.GetServiceInfo()[name]
		return name == "" || ok
	}})
	inferencepb.RegisterGRPCInferenceServiceServer(s, &inferenceServer{g: g})
	reflection.Register(s)
	for service, info := range s.GetServiceInfo() {
		for _, m := range info.Methods {
			methods["/"+service+"/"+m.Name] = true
		}
	}
	return s
}

// admit asks for the token, before any of a call's message is read: a stranger gets no memory. Health is open, as /healthz and /readyz are.
func (g *Gateway) admit(methods map[string]bool) tap.ServerInHandle {
	guard := newGuard(g.cfg)
	return func(ctx context.Context, call *tap.Info) (context.Context, error) {
		method, authorization := call.FullMethodName, ""
		if values := call.Header.Get("authorization"); len(values) > 0 {
			authorization = values[0]
		}
		if strings.HasPrefix(method, "/"+healthpb.Health_ServiceDesc.ServiceName+"/") || guard.allows(authorization) {
			return ctx, nil
		}
		if !methods[method] {
			method = routeOther // a label of its own for each name that somebody thinks up would have no bound
		}
		return ctx, g.answer(method, func() error {
			return grpcstatus.Error(codes.Unauthenticated, "send the node's api_token as metadata `authorization: Bearer TOKEN`")
		})
	}
}

// answer runs one call behind panic guard, log and metrics.
func (g *Gateway) answer(method string, handle func() error) (err error) {
	start := time.Now()
	g.metrics.begin()
	defer func() {
		if thrown := recover(); thrown != nil {
			g.log.Error().Str("op", method).Any("panic", thrown).Bytes("stack", debug.Stack()).Msg("call panicked")
			err = grpcstatus.Error(codes.Internal, "this call met a fault of the node; its log says more")
		}
		took := time.Since(start)
		code := grpcstatus.Code(err)
		g.metrics.end(method, int(code), took)
		g.log.Debug().Str("op", method).Stringer("status", code).Dur("took", took).Err(err).Msg("call")
	}()
	return grpcError(handle())
}

// grpcError gives a failure the code of its status; those that have one already keep it.
func grpcError(err error) error {
	if err == nil {
		return nil
	}
	type coded interface {
		error
		GRPCStatus() *grpcstatus.Status
	}
	if _, ok := errors.AsType[coded](err); ok {
		return err
	}
	doc := document(err)
	message := doc.Body.Message
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "") + "…"
	}
	s := grpcstatus.New(statusOf(doc.Body.Code).grpc, message)
	if doc.RetryAfter > 0 {
		if with, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(doc.RetryAfter)}); err == nil {
			s = with
		}
	}
	return s.Err()
}

// health answers grpc.health.v1: serving means ready, for the server as a whole (the empty name) and for each of its services.
type health struct {
	healthpb.UnimplementedHealthServer
	node     Node
	services func(name string) bool
	stopping <-chan struct{}
}

func (h *health) status(ctx context.Context) healthpb.HealthCheckResponse_ServingStatus {
	select {
	case <-h.stopping:
		return healthpb.HealthCheckResponse_NOT_SERVING
	default:
	}
	if doc, err := h.node.Ready(ctx); err != nil || !doc.Ready {
		return healthpb.HealthCheckResponse_NOT_SERVING
	}
	return healthpb.HealthCheckResponse_SERVING
}

// Check answers with the health now.
func (h *health) Check(ctx context.Context, req *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if !h.services(req.GetService()) {
		return nil, grpcstatus.Errorf(codes.NotFound, "no service %q", req.GetService())
	}
	return &healthpb.HealthCheckResponse{Status: h.status(ctx)}, nil
}

// Watch sends the health, and again whenever it changes, until the client goes or the node stops.
func (h *health) Watch(req *healthpb.HealthCheckRequest, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	beat := time.NewTicker(healthBeat)
	defer beat.Stop()
	sent := healthpb.HealthCheckResponse_UNKNOWN
	for stopping := false; ; {
		now := healthpb.HealthCheckResponse_SERVICE_UNKNOWN
		if h.services(req.GetService()) {
			now = h.status(stream.Context())
		}
		if now != sent {
			if err := stream.Send(&healthpb.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
			sent = now
		}
		if stopping {
			return grpcstatus.Error(codes.Unavailable, errStopped.Error())
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-h.stopping:
			stopping = true
		case <-beat.C:
		}
	}
}
