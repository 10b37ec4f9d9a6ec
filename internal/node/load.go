package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/checkpoint"
	"github.com/kwaai/kwaaid/internal/config"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/serving"
	"github.com/kwaai/kwaaid/internal/wire"
)

// ErrCannotLoad: an expert of the configuration cannot be hosted. The message names file, tensor, expected and found.
var ErrCannotLoad = errors.New("cannot host what the configuration asks for")

// logTick is how often long loading is logged where no progress is shown.
const logTick = 5 * time.Second

// batch is what one entry of `experts` asks to host, read as far as its header.
type batch struct {
	offers []serving.Offer
	files  io.Closer // open until the last offer was loaded; may be nil
}

func (b *batch) close() {
	if b.files != nil {
		_ = b.files.Close() // only read from
		b.files = nil
	}
}

// loadAll hosts the entries of `experts`, and routes the checkpoints of `layers`. All are begun before the first expert is read, which may take
// minutes: callers of the others hear NOT_READY meanwhile rather than NOT_FOUND, and layers can be called. With keepGoing what fails is logged,
// left out and told of by Ready; else the first failure ends it.
func (n *Node) loadAll(ctx context.Context, experts []config.Expert, layers []config.Layer, keepGoing bool) error {
	defer giveBack()
	begun := make([]*loading, 0, len(experts))
	defer func() {
		for _, l := range begun {
			l.files.close() // of those that were not finished
		}
	}()
	for _, e := range experts {
		l := n.begin(ctx, e, keepGoing)
		begun = append(begun, l)
		if l.err != nil && !keepGoing {
			return fmt.Errorf("%w: %w", ErrCannotLoad, l.err)
		}
	}
	if err := n.loadLayers(ctx, layers, keepGoing); err != nil {
		return err
	}
	for _, l := range begun {
		if err := n.finish(ctx, l, n.options.Progress); err != nil {
			if !keepGoing || ctx.Err() != nil {
				return fmt.Errorf("%w: %w", ErrCannotLoad, err)
			}
			n.log.Error().Err(err).Str("entry", l.entry.String()).Msg("experts left out")
		}
	}
	return nil
}

// maxLeftOut bounds what is kept for operators about an entry that was left out: a checkpoint may have something to say of each layer.
const maxLeftOut = 512

// leaveOut notes why an entry of the configuration is not hosted, or not as a whole.
func (n *Node) leaveOut(e config.Expert, err error) {
	why, more, cut := strings.Cut(err.Error(), "\n")
	if len(why) > maxLeftOut {
		why, cut = why[:maxLeftOut], true
	}
	if cut && more != "" {
		why += fmt.Sprintf(" (and %d more)", 1+strings.Count(more, "\n"))
	}
	n.leftOutMu.Lock()
	defer n.leftOutMu.Unlock()
	n.leftOut = append(n.leftOut, fmt.Sprintf("experts left out: %s: %s", e, why))
}

// giveBack returns to the system what loading left behind: buffers of the files' tensors, and drawn weights before they were packed, which are as
// large as the experts. The runtime by itself would keep them for minutes.
func giveBack() { debug.FreeOSMemory() }

// load hosts what one entry asks for and returns the IDs. Experts that could be loaded stay when others of the entry fail; with
// keepGoing those of a checkpoint's layers that can be used are loaded beside the error of the others. progress may be nil.
func (n *Node) load(ctx context.Context, e config.Expert, keepGoing bool, progress func(api.LoadProgress)) ([]expert.ID, error) {
	l := n.begin(ctx, e, keepGoing)
	return l.ids, n.finish(ctx, l, progress)
}

// loading is an entry that was begun: its experts are listed, and their callers hear NOT_READY.
type loading struct {
	entry   config.Expert
	files   *batch
	experts []*serving.Loading
	ids     []expert.ID // in step with experts
	read    atomic.Int64
	err     error // of what could not be begun
}

// begin reads the headers behind an entry, routes its layers, and lists its experts. finish is called next, or the files are closed.
func (n *Node) begin(ctx context.Context, e config.Expert, keepGoing bool) *loading {
	l := &loading{entry: e}
	l.files, l.err = n.open(ctx, e, func(bytes int64) { l.read.Add(bytes) })
	if l.err != nil && !keepGoing {
		return l
	}
	errs := []error{l.err}
	for _, o := range l.files.offers {
		x, err := n.serving.Begin(o)
		if err != nil {
			errs = append(errs, named(o, err))
			continue
		}
		l.experts, l.ids = append(l.experts, x), append(l.ids, o.ID)
	}
	if l.err = errors.Join(errs...); l.err != nil && keepGoing {
		n.leaveOut(e, l.err)
	}
	return l
}

// finish loads what was begun and closes the files. The error is also that of what was not begun. progress may be nil.
func (n *Node) finish(ctx context.Context, l *loading, progress func(api.LoadProgress)) error {
	defer l.files.close()
	if len(l.experts) == 0 && l.err != nil {
		return l.err
	}
	begun, total := time.Now(), int64(0)
	var done atomic.Int64
	for _, o := range l.files.offers {
		total += o.Bytes
	}
	stopReport := n.reportLoading(l.entry, progress, func() api.LoadProgress {
		return api.LoadProgress{
			Name: entryName(l.entry), Done: int(done.Load()), Total: len(l.experts), Bytes: l.read.Load(), BytesTotal: total, TookS: time.Since(begun).Seconds(),
		}
	})
	// Reading, hashing and packing of one expert overlap with those of the next.
	var g errgroup.Group
	g.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	failures := make([]error, len(l.experts))
	for i, x := range l.experts {
		g.Go(func() error {
			failures[i] = x.Run(ctx)
			done.Add(1)
			return nil
		})
	}
	_ = g.Wait()
	stopReport()
	if err := errors.Join(append(failures, l.err)...); err != nil {
		return err
	}
	if err := n.hashes.Save(); err != nil {
		n.log.Warn().Err(err).Msg("weights will be hashed again at the next start")
	}
	n.log.Info().Int("experts", len(l.ids)).Int64("bytes", total).Dur("took", time.Since(begun)).Str("entry", l.entry.String()).Msg("experts loaded")
	return nil
}

// reportLoading tells progress, which may be nil, how far a load is: now, meanwhile, and when the returned function is called. It logs a long load,
// unless the node's progress is shown to people.
func (n *Node) reportLoading(e config.Expert, progress func(api.LoadProgress), state func() api.LoadProgress) (stop func()) {
	stopLog := func() {}
	if n.options.Progress == nil {
		stopLog = every(logTick, func() {
			p := state()
			n.log.Info().Int64("read", p.Bytes).Int64("of", p.BytesTotal).Str("entry", e.String()).Msg("loading experts")
		})
	}
	if progress == nil {
		return stopLog
	}
	progress(state())
	stopProgress := every(progressTick, func() { progress(state()) })
	return func() {
		stopLog()
		stopProgress()
		progress(state())
	}
}

// entryName says what an entry is about, for people.
func entryName(e config.Expert) string {
	if e.Checkpoint != "" {
		name, _ := e.ModelName() // it was opened by that name
		return name
	}
	if name, ok := e.Name(); ok {
		return name.String()
	}
	id, _ := e.ExpertID()
	return id.String()
}

// named makes sure that an error says which expert it is about, by its name where it has one.
func named(o serving.Offer, err error) error {
	if o.Name != "" {
		return fmt.Errorf("%s: %w", o.Name, err)
	}
	return err
}

// open reads the headers behind an entry and says what there is to load, which may be something beside an error. What it returns is
// to be closed.
func (n *Node) open(ctx context.Context, e config.Expert, progress checkpoint.Progress) (*batch, error) {
	if e.Checkpoint != "" {
		return n.openCheckpoint(ctx, e, progress)
	}
	id, ok := e.ExpertID()
	if !ok {
		return &batch{}, fmt.Errorf("%w: %s has neither an id nor a name", expert.ErrInvalidArgument, e)
	}
	o := serving.Offer{ID: id}
	if name, ok := e.Name(); ok {
		o.Name = name.String()
	}
	if e.File == "" {
		o.Bytes = e.Params().DrawnBytes()
		o.Load = func(context.Context) (expert.Expert, error) {
			defer progress(o.Bytes)
			return expert.New(e.Params(), n.engine)
		}
		return &batch{offers: []serving.Offer{o}}, nil
	}
	info, err := os.Stat(e.File)
	if err != nil {
		return &batch{}, fmt.Errorf("%s: %w", id, err)
	}
	o.Bytes = info.Size() // packed weights take about what they take in the file
	o.Load = func(ctx context.Context) (expert.Expert, error) {
		return checkpoint.LoadFile(ctx, e.File, e.Params(), n.engine, progress, checkpoint.WithHashes(n.hashes))
	}
	return &batch{offers: []serving.Offer{o}}, nil
}

func (n *Node) openCheckpoint(ctx context.Context, e config.Expert, progress checkpoint.Progress) (*batch, error) {
	model, err := e.ModelName()
	if err != nil {
		return &batch{}, err
	}
	c, err := checkpoint.Open(e.Checkpoint, checkpoint.WithHashes(n.hashes))
	if err != nil {
		return &batch{}, err
	}
	b := &batch{files: c}
	n.route(ctx, c, model, e.Revision, e.Layers.HasLayer)
	choices, warning, unusable := c.Select(e.Layers.HasLayer, e.Experts.Has)
	if warning != "" {
		n.log.Warn().Str("entry", e.String()).Msg(warning)
	}
	for _, choice := range choices {
		l, index := choice.Layer, choice.Index
		layer, err := expert.NewLayerName(model, e.Revision, l.Name)
		if err != nil {
			return b, err
		}
		name := layer.Expert(index)
		b.offers = append(b.offers, serving.Offer{
			ID: name.ID(), Name: name.String(), Bytes: l.ExpertBytes,
			Load: func(ctx context.Context) (expert.Expert, error) { return l.Load(ctx, index, n.engine, progress) },
		})
	}
	return b, unusable
}

// Load hosts more experts, as one entry of the configuration's `experts` would.
func (n *Node) Load(ctx context.Context, req api.LoadRequest, progress func(api.LoadProgress)) (api.ExpertList, error) {
	e, err := config.ParseExpert(req.Spec)
	if err != nil {
		return api.ExpertList{}, fmt.Errorf("%w: %s", expert.ErrInvalidArgument, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	ids, err := n.load(ctx, e, false, progress)
	giveBack()
	if err != nil {
		if wire.StatusOf(err) == wire.Internal && !errors.Is(err, expert.ErrInternal) { // the files are not what the caller thinks
			err = fmt.Errorf("%w: %w", expert.ErrInvalidArgument, err)
		}
		return api.ExpertList{}, err
	}
	return n.list(ids), nil
}

// Unload stops hosting an expert, once the calls that it had taken are answered.
func (n *Node) Unload(ctx context.Context, name string) (api.ExpertList, error) {
	ref, err := parseExpert(name)
	if err != nil {
		return api.ExpertList{}, err
	}
	list := n.list([]expert.ID{ref.ID})
	if err := n.serving.Remove(ctx, ref.ID); err != nil {
		return api.ExpertList{}, err
	}
	for i := range list.Experts {
		list.Experts[i].State = expert.StateDraining
	}
	return list, nil
}

// list returns the documents of hosted experts.
func (n *Node) list(ids []expert.ID) api.ExpertList {
	out := api.ExpertList{Experts: make([]api.Expert, 0, len(ids))}
	for _, id := range ids {
		if h, ok := n.serving.Has(id); ok {
			out.Experts = append(out.Experts, hostedDocument(h))
		}
	}
	return out
}
