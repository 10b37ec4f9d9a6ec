package config

import (
	"time"

	"github.com/kwaai/kwaaid/internal/discovery"
	"github.com/kwaai/kwaaid/internal/dispatch"
	"github.com/kwaai/kwaaid/internal/gateway"
	"github.com/kwaai/kwaaid/internal/p2p"
	"github.com/kwaai/kwaaid/internal/rpc"
	"github.com/kwaai/kwaaid/internal/serving"
)

// Config is a node's configuration. Default makes one, Load fills it from a file, the environment and flags.
type Config struct {
	Swarm     string    `yaml:"swarm" doc:"Name of the swarm. A swarm is a DHT of its own: nodes of other swarms are never asked."`
	Listen    []string  `yaml:"listen" doc:"Addresses to listen on, as multiaddrs. TCP is dialled first, QUIC serves hole punching and networks without TCP."`
	Announce  []string  `yaml:"announce" doc:"Addresses to announce instead of those found, such as a forwarded port's: [/ip4/203.0.113.7/tcp/7577]"`
	Bootstrap []string  `yaml:"bootstrap" doc:"Peers to join by, as multiaddrs with /p2p/; any node can be one. Peers once seen are remembered and tried as well."`
	DHT       string    `yaml:"dht" doc:"server: keeps records for others; client: only asks. auto: server when all listen addresses are loopback or private, else as reachability shows."`
	NAT       NAT       `yaml:"nat" doc:"Ways through routers, for nodes that cannot be dialled directly."`
	Data      string    `yaml:"data" doc:"Directory of the key, the cache of peers and the DHT's records; one node at a time. Default: $STATE_DIRECTORY (systemd sets it), else $XDG_DATA_HOME/kwaaid, else ~/.local/share/kwaaid."`
	API       string    `yaml:"api" doc:"HOST:PORT of HTTP: commands, status page, metrics, health."`
	GRPC      string    `yaml:"grpc" doc:"HOST:PORT of gRPC: health and reflection."`
	APIToken  string    `yaml:"api_token" doc:"Token that clients of api and grpc send (Authorization: Bearer TOKEN). Needed, or insecure, where one of them is not on loopback."`
	Insecure  bool      `yaml:"insecure" doc:"Takes calls on api and grpc from anywhere without a token: only behind something that checks who calls."`
	APIHosts  []string  `yaml:"api_hosts" doc:"Names besides localhost and the machine's addresses under which clients reach api, such as kwaai.example.com; others are refused."`
	PProf     bool      `yaml:"pprof" doc:"Serves Go's profiles at /debug/pprof/ on api."`
	Log       Log       `yaml:"log" doc:"What is logged, to standard error."`
	Experts   []Expert  `yaml:"experts" doc:"Experts to host."`
	Layers    []Layer   `yaml:"layers" doc:"MoE layers that this node can route without hosting their experts; those of checkpoints that it hosts it routes anyway."`
	Fallbacks Fallbacks `yaml:"fallbacks" doc:"Experts to ask, in this order, when nobody answers for the one on the left. Of the same hidden size; the reply says who answered."`
	Remotes   Remotes   `yaml:"remotes" doc:"Providers that are known without the DHT."`
	Calls     Calls     `yaml:"calls" doc:"Calls that this node makes."`
	Checks    Checks    `yaml:"checks" doc:"How answers are checked."`
	Serving   Serving   `yaml:"serving" doc:"Calls that this node answers."`
	Limits    Limits    `yaml:"limits" doc:"What strangers may use of this node."`
}

// NAT says how a node behind a router makes itself reachable. All of it stays off in a swarm on loopback.
type NAT struct {
	Relay        bool `yaml:"relay" doc:"Asks relays to pass connections on."`
	HolePunching bool `yaml:"hole_punching" doc:"Turns relayed connections into direct ones (needs relay)."`
	UPnP         bool `yaml:"upnp" doc:"Asks the router to forward the ports."`
	AutoNAT      bool `yaml:"autonat" doc:"Asks others whether this node can be dialled."`
}

// Log says what is logged and how.
type Log struct {
	Level  string `yaml:"level" doc:"trace, debug, info, warn or error"`
	Format string `yaml:"format" doc:"console: for people; json; auto: for people on a terminal, else JSON"`
}

// Calls are the defaults of the calls that this node makes.
type Calls struct {
	Timeout    time.Duration `yaml:"timeout" doc:"One deadline for all of a call: look-up, attempts, fallbacks."`
	MaxRetries int           `yaml:"max_retries" doc:"Attempts after the first, on other providers; not counted: those that cannot be dialled."`
	Hedge      bool          `yaml:"hedge" doc:"Asks a second provider when the first is slower than that expert usually is."`
	Codec      string        `yaml:"codec" doc:"Activations on the wire: f32 (bit-exact), bf16 or f16"`
	Combine    string        `yaml:"combine" doc:"Where a layer's outputs are added up: caller (the same bits whoever hosts) or peer (fewer bytes)"`

	TopK             int           `yaml:"top_k" doc:"Experts for each row of a layer; 0: as the model says"`
	KMin             int           `yaml:"k_min" doc:"A quorum for layers: answers that each row needs; 0: all"`
	TimeoutAfterKMin time.Duration `yaml:"timeout_after_k_min" doc:"How long experts beyond a quorum are waited for."`
}

// Layer is one entry of `layers`: of a checkpoint only gates and shared experts are loaded.
type Layer struct {
	Checkpoint string    `yaml:"checkpoint"` // Hugging Face directory
	Model      string    `yaml:"model"`      // its name in the swarm; empty: the directory's name
	Revision   string    `yaml:"revision"`   // empty: main
	Layers     Selection `yaml:"layers"`     // all, unless said otherwise
}

// ModelName returns the name under which the checkpoint's layers are known, and checks it.
func (l Layer) ModelName() (string, error) { return l.checkpoint().ModelName() }

// checkpoint is the entry of `experts` that would host what this one routes.
func (l Layer) checkpoint() Expert {
	return Expert{Checkpoint: l.Checkpoint, Model: l.Model, Revision: l.Revision, Layers: l.Layers}
}

// Checks says how answers are checked.
type Checks struct {
	Share float64 `yaml:"share" doc:"Fraction of the calls that is asked twice and compared by hash, 0 to 1"`
	NaN   bool    `yaml:"nan" doc:"Refuses NaN and Inf in inputs, and in answers to inputs without."`
}

// Serving bounds the calls that this node answers.
type Serving struct {
	MaxRows    int           `yaml:"max_rows" doc:"Rows of one request for one expert."`
	QueueRows  int           `yaml:"queue_rows" doc:"Rows admitted and not yet answered, all callers together; above it they hear OVERLOADED."`
	QueueBytes Size          `yaml:"queue_bytes" doc:"The same in bytes of activations."`
	MaxFrame   Size          `yaml:"max_frame" doc:"One request or reply on the wire, and one message on api and grpc."`
	Drain      time.Duration `yaml:"drain" doc:"Time to answer what was taken, after SIGTERM. Keep TimeoutStopSec and stop_grace_period above it."`
	Memory     Size          `yaml:"memory" doc:"Memory that weights and queues may take; 0: what the machine or cgroup has"`
	Numerics   string        `yaml:"numerics" doc:"Order of operations for bf16 weights: exact, dot, tile, or fast, the quickest of them here"`
}

// Limits bounds what strangers may use of this node.
type Limits struct {
	Connections     int `yaml:"connections" doc:"Connections, in and out."`
	StreamsPerPeer  int `yaml:"streams_per_peer" doc:"Streams that one peer may hold open."`
	RequestsPerPeer int `yaml:"requests_per_peer" doc:"Requests a second that one peer may make; 0: no limit"`
}

// Fallbacks holds for an expert those to ask in its place, in order.
type Fallbacks map[Ref][]Ref

// Remotes holds for an expert the addresses, with /p2p/, of providers that are known without the DHT.
type Remotes map[Ref][]string

// Default returns the configuration of a node that was told nothing: what each part takes for its default. Its Data is
// empty; Load settles it.
func Default() *Config {
	host, dht, face := p2p.DefaultConfig(), discovery.DefaultConfig(), gateway.DefaultConfig()
	calls, answers, protocol := dispatch.DefaultConfig(), serving.DefaultConfig(), rpc.DefaultServerConfig()
	return &Config{
		Swarm:  dht.Swarm,
		Listen: host.Listen,
		DHT:    dht.DHT,
		NAT:    NAT(host.NAT),
		API:    face.API,
		GRPC:   face.GRPC,
		Log:    Log{Level: "info", Format: "auto"},
		Calls: Calls{
			Timeout:    calls.Timeout,
			MaxRetries: calls.MaxRetries,
			Hedge:      calls.Hedge,
			Codec:      "f32",
			Combine:    "caller",
		},
		Checks: Checks{Share: calls.CheckShare, NaN: calls.CheckNaN},
		Serving: Serving{
			MaxRows:    answers.MaxRows,
			QueueRows:  answers.QueueRows,
			QueueBytes: Size(answers.QueueBytes),
			MaxFrame:   Size(protocol.Limits.Frame),
			Drain:      answers.Drain,
			Memory:     Size(answers.Memory),
			Numerics:   "exact",
		},
		Limits: Limits{
			Connections:     host.Limits.Connections,
			StreamsPerPeer:  host.Limits.StreamsPerPeer,
			RequestsPerPeer: protocol.RequestsPerPeer,
		},
	}
}
