package wire

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/proto"

	"github.com/kwaai/kwaaid/internal/expert"
	expertv1 "github.com/kwaai/kwaaid/proto/kwaai/expert/v1"
)

// MarshalDescription makes the payload of the reply to describe. The load is not in it: it stands in the reply's header. Nor is
// why an expert failed, which may name files of this machine.
func MarshalDescription(d *expert.Description) ([]byte, error) {
	m := &expertv1.Description{
		Version: d.Version, FreeMemory: uint64(max(d.FreeMemory, 0)), SpeedGflops: d.SpeedGFLOPS, Draining: d.Draining,
		Experts: make([]*expertv1.HostedExpert, len(d.Experts)),
	}
	for i := range d.Experts {
		h := &d.Experts[i]
		to := &expertv1.HostedExpert{
			Expert: uint64(h.ID), Name: h.Name, State: string(h.State), Kind: h.Kind, Hidden: uint32(h.Hidden), Inner: uint32(h.Inner),
			Dtype: h.DType, Numerics: h.Numerics, Bytes: uint64(max(h.Bytes, 0)),
		}
		if !h.Digest.IsZero() {
			to.Digest = h.Digest[:]
		}
		m.Experts[i] = to
	}
	return proto.Marshal(m)
}

// maxDescribed bounds the experts in a description: a host with 64 layers of 512 experts has a quarter of it.
const maxDescribed = 1 << 17

// UnmarshalDescription reads what MarshalDescription wrote. Errors match expert.ErrBadReply.
func UnmarshalDescription(payload []byte) (expert.Description, error) {
	d, err := unmarshalDescription(payload)
	if err != nil {
		return expert.Description{}, fmt.Errorf("%w: description: %s", expert.ErrBadReply, err.Error())
	}
	return d, nil
}

func unmarshalDescription(payload []byte) (d expert.Description, err error) {
	if err := checkExperts(payload); err != nil {
		return d, err
	}
	var m expertv1.Description
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(payload, &m); err != nil {
		return d, err
	}
	d = expert.Description{
		Version: clip(m.GetVersion()), FreeMemory: int64(min(m.GetFreeMemory(), math.MaxInt64)), Draining: m.GetDraining(),
		Experts: make([]expert.Hosted, len(m.GetExperts())),
	}
	if speed := m.GetSpeedGflops(); speed >= 0 && !math.IsInf(speed, 0) { // false for NaN
		d.SpeedGFLOPS = speed
	}
	for i, from := range m.GetExperts() {
		if d.Experts[i], err = hostedFromProto(from); err != nil {
			return d, fmt.Errorf("%v: %w", expert.ID(from.GetExpert()), err)
		}
	}
	return d, nil
}

// checkExperts refuses a payload that claims more experts than it has room for: the decoder would make a message for each claim,
// and two bytes are enough for one. An expert takes at least its ID, 9 bytes with 2 around them.
func checkExperts(payload []byte) error {
	limit := min(maxDescribed, len(payload)/11)
	for n, rest := 0, payload; len(rest) > 0; {
		f, after, err := nextField(rest)
		if err != nil {
			return err
		}
		rest = after
		if f.number != 2 {
			continue
		}
		if n++; n > limit {
			return fmt.Errorf("more than %d experts in %d bytes", limit, len(payload))
		}
	}
	return nil
}

func hostedFromProto(m *expertv1.HostedExpert) (h expert.Hosted, err error) {
	h = expert.Hosted{ID: expert.ID(m.GetExpert()), Name: clip(m.GetName()), State: expert.State(m.GetState())}
	switch h.State {
	case expert.StateLoading, expert.StateReady, expert.StateDraining, expert.StateFailed:
	default:
		return h, fmt.Errorf("state %q", clip(m.GetState()))
	}
	if m.GetHidden() > math.MaxInt32 || m.GetInner() > math.MaxInt32 {
		return h, errors.New("sizes above 2^31")
	}
	h.Spec = expert.Spec{
		Kind: clip(m.GetKind()), Hidden: int(m.GetHidden()), Inner: int(m.GetInner()), DType: clip(m.GetDtype()),
		Numerics: clip(m.GetNumerics()), Bytes: int64(min(m.GetBytes(), math.MaxInt64)),
	}
	switch len(m.GetDigest()) {
	case 0:
	case len(h.Digest):
		copy(h.Digest[:], m.GetDigest())
	default:
		return h, fmt.Errorf("a digest of %d bytes", len(m.GetDigest()))
	}
	return h, nil
}
