package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/kwaai/kwaaid/internal/checkpoint"
	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
)

// asBareHost makes the test binary one of the processes of the limit that a layer's call of one row stands beside: the same experts and
// products behind plain TCP, with no encryption, no muxer, no queue and no choice of hosts. Its value is the directory of the checkpoint, a
// comma, and which of the four it is.
const asBareHost = "KWAAID_TEST_AS_BARE_HOST"

// bareExperts are experts [from], [from+step], ... of a drawn layer.
type bareExperts []expert.Expert

func loadBare(ctx context.Context, dir string, from, step int, pool *kernel.Pool) (bareExperts, error) {
	c, err := checkpoint.Open(dir)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var all bareExperts
	for e := from; e < costExperts; e += step {
		one, err := c.Layers()[0].Load(ctx, e, expert.Engine{Pool: pool}, nil)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

// run computes a row by some of them, as many at once as there are CPUs, into out.
func (b bareExperts) run(which []byte, row []float32, out []byte) error {
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, e := range which {
		g.Go(func() error {
			y, err := b[e].Forward(context.Background(), expert.NewRows(row, costHidden))
			if err == nil {
				codec.Encode(out[4*costHidden*i:4*costHidden*(i+1)], codec.F32, y.Float32s())
			}
			return err
		})
	}
	return g.Wait()
}

// runBareHost answers requests, which are the number of experts, their places, and a row, until its standard input ends.
func runBareHost(value string, stdin io.Reader, stdout io.Writer) error {
	dir, place, _ := strings.Cut(value, ",")
	from, err := strconv.Atoi(place)
	if err != nil {
		return err
	}
	pool := kernel.NewPool(0)
	defer pool.Close()
	mine, err := loadBare(context.Background(), dir, from, costHosts, pool)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		os.Exit(0)
	}()
	fmt.Fprintln(stdout, l.Addr())
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	r := bufio.NewReaderSize(c, 64<<10)
	row, request := make([]float32, costHidden), make([]byte, 4*costHidden)
	for {
		n, err := r.ReadByte()
		if err != nil {
			return err
		}
		which, out := make([]byte, n), make([]byte, 4*costHidden*int(n))
		if _, err = io.ReadFull(r, which); err == nil {
			_, err = io.ReadFull(r, request)
		}
		if err != nil {
			return err
		}
		codec.Decode(row, codec.F32, request)
		if err := mine.run(which, row, out); err != nil {
			return err
		}
		if _, err := c.Write(out); err != nil {
			return err
		}
	}
}

// bareLayer is the layer's experts in this process, and in four others.
type bareLayer struct {
	here  bareExperts
	hosts [costHosts]net.Conn
	dice  *rand.Rand
	row   []float32
	wire  []byte
	out   []byte
}

func newBareLayer(t *testing.T, dir string) *bareLayer {
	t.Helper()
	b := &bareLayer{
		dice: rand.New(rand.NewPCG(3, 4)), row: make([]float32, costHidden), wire: make([]byte, 4*costHidden), out: make([]byte, 4*costHidden*costTopK),
	}
	pool := kernel.NewPool(0)
	t.Cleanup(pool.Close)
	var err error
	b.here, err = loadBare(t.Context(), dir, 0, 1, pool)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	for n := range b.hosts {
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Env = append(os.Environ(), asBareHost+"="+filepath.Clean(dir)+","+strconv.Itoa(n))
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _, _ = in.Close(), cmd.Wait() })
		address, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		b.hosts[n], err = net.Dial("tcp", strings.TrimSpace(address))
		require.NoError(t, err)
		t.Cleanup(func() { _ = b.hosts[n].Close() })
	}
	for i := range b.row {
		b.row[i] = 2*b.dice.Float32() - 1
	}
	codec.Encode(b.wire, codec.F32, b.row)
	return b
}

// measure returns the median of calls in milliseconds, of those that stay in this process and of those that go to the four.
func (b *bareLayer) measure(t *testing.T, calls int) (here, far float64) {
	t.Helper()
	median := func(call func(chosen []byte) error) float64 {
		took := make([]float64, calls)
		for i := range took {
			chosen := make([]byte, costTopK)
			for k, e := range b.dice.Perm(costExperts)[:costTopK] {
				chosen[k] = byte(e)
			}
			start := time.Now()
			require.NoError(t, call(chosen))
			took[i] = float64(time.Since(start)) / float64(time.Millisecond)
		}
		slices.Sort(took)
		return took[calls/2]
	}
	here = median(func(chosen []byte) error { return b.here.run(chosen, b.row, b.out) })
	return here, median(b.call)
}

// call asks each host for what it has of the chosen experts, all at once.
func (b *bareLayer) call(chosen []byte) error {
	var mine [costHosts][]byte
	for _, e := range chosen {
		mine[e%costHosts] = append(mine[e%costHosts], e/costHosts)
	}
	var g errgroup.Group
	at := 0
	for n, which := range mine {
		if len(which) == 0 {
			continue
		}
		out := b.out[4*costHidden*at : 4*costHidden*(at+len(which))]
		at += len(which)
		g.Go(func() error {
			if _, err := b.hosts[n].Write(slices.Concat([]byte{byte(len(which))}, which, b.wire)); err != nil {
				return err
			}
			_, err := io.ReadFull(b.hosts[n], out)
			return err
		})
	}
	return g.Wait()
}
