package gateway

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/kwaai/kwaaid/internal/api"
	inferencepb "github.com/kwaai/kwaaid/proto/inference"
)

func (f *face) dial() *grpc.ClientConn {
	f.t.Helper()
	c, err := grpc.NewClient(f.GRPCAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(f.t, err)
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestGRPCHealth_FollowsReadiness(t *testing.T) {
	f := newFace(t)
	c := healthpb.NewHealthClient(f.dial())
	check := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		got, err := c.Check(soon(t), &healthpb.HealthCheckRequest{})
		require.NoError(t, err)
		require.Equal(t, want, got.GetStatus())
	}
	check(healthpb.HealthCheckResponse_SERVING)
	watch, err := c.Watch(soon(t), &healthpb.HealthCheckRequest{})
	require.NoError(t, err)
	heard := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		got, err := watch.Recv()
		require.NoError(t, err)
		require.Equal(t, want, got.GetStatus())
	}
	heard(healthpb.HealthCheckResponse_SERVING)
	f.node.set(api.Readiness{Reasons: []string{"draining"}}, nil)
	heard(healthpb.HealthCheckResponse_NOT_SERVING)
	check(healthpb.HealthCheckResponse_NOT_SERVING)
	f.node.set(api.Readiness{Ready: true}, nil)
	heard(healthpb.HealthCheckResponse_SERVING)
	_, err = c.Check(soon(t), &healthpb.HealthCheckRequest{Service: "nobody"})
	require.Equal(t, codes.NotFound, grpcstatus.Code(err))
	f.stop() // a watcher does not hold it up, and hears of it
	heard(healthpb.HealthCheckResponse_NOT_SERVING)
	_, err = watch.Recv()
	require.Equal(t, codes.Unavailable, grpcstatus.Code(err))
}

func TestGRPCReflection_ListsTheServices(t *testing.T) {
	f := newFace(t)
	stream, err := reflectionpb.NewServerReflectionClient(f.dial()).ServerReflectionInfo(soon(t))
	require.NoError(t, err)
	require.NoError(t, stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}))
	reply, err := stream.Recv()
	require.NoError(t, err)
	var names []string
	for _, s := range reply.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	require.Contains(t, names, "grpc.health.v1.Health")
	require.NoError(t, stream.CloseSend())
}

func TestGRPC_AsksForTheTokenButForHealth(t *testing.T) {
	f := newFace(t, func(c *Config) { c.Token = "secret" })
	conn := f.dial()
	_, err := healthpb.NewHealthClient(conn).Check(soon(t), &healthpb.HealthCheckRequest{})
	require.NoError(t, err)
	list := func(ctx context.Context) error {
		stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
		require.NoError(t, err)
		_ = stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
		_, err = stream.Recv()
		return err
	}
	require.Equal(t, codes.Unauthenticated, grpcstatus.Code(list(soon(t))))
	require.Equal(t, codes.Unauthenticated, grpcstatus.Code(list(metadata.AppendToOutgoingContext(soon(t), "authorization", "Bearer other"))))
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(soon(t), "authorization", "Bearer secret"))
	defer cancel()
	require.NoError(t, list(ctx))
	cancel()
	require.Eventually(t, func() bool {
		return f.metric("kwaai_gateway_requests_total", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "16") == 2
	}, 10*time.Second, time.Millisecond)
}

func TestGRPC_AsksForTheTokenBeforeItReadsTheMessage(t *testing.T) {
	f := newFace(t, func(c *Config) { c.Token, c.MaxFrame = "secret", 1<<20 })
	client := inferencepb.NewGRPCInferenceServiceClient(f.dial())
	request := &inferencepb.ModelInferRequest{RawInputContents: [][]byte{make([]byte, 2<<20)}}
	_, err := client.ModelInfer(metadata.AppendToOutgoingContext(soon(t), "authorization", "Bearer secret"), request)
	require.Equal(t, codes.ResourceExhausted, grpcstatus.Code(err), "it is too large to be read")
	_, err = client.ModelInfer(soon(t), request)
	require.Equal(t, codes.Unauthenticated, grpcstatus.Code(err))
	err = f.dial().Invoke(soon(t), "/any/Name", request, new(inferencepb.ModelInferResponse))
	require.Equal(t, codes.Unauthenticated, grpcstatus.Code(err))
	require.Eventually(t, func() bool { return f.metric("kwaai_gateway_requests_total", routeOther, "16") == 1 }, 10*time.Second, time.Millisecond,
		"strangers make no names of metrics")
}

func TestGRPC_APanicIsAnErrorAndTheNextCallWorks(t *testing.T) {
	f := newFace(t)
	err := f.answer("/a/B", func() error { panic("a bug") })
	require.Equal(t, codes.Internal, grpcstatus.Code(err))
	require.NoError(t, f.answer("/a/B", func() error { return nil }))
	require.Equal(t, codes.Internal, grpcstatus.Code(f.answer("/a/B", func() error { return errors.New("who knows") })))
}
