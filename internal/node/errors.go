package node

import (
	"errors"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
)

// document turns a failed call into what gateway and commands show: the status's name, and all that is known.
func document(err error, self peer.ID) error {
	if _, ok := errors.AsType[*api.Error](err); ok {
		return err
	}
	doc := api.NewError(wire.StatusOf(err).String(), err.Error(), err)
	if over, ok := errors.AsType[*expert.OverloadedError](err); ok {
		doc.RetryAfter = over.RetryAfter
	}
	if call, ok := errors.AsType[*expert.CallError](err); ok {
		doc = doc.WithCall(call.Expert, attempts(call.Attempts, self))
	}
	return doc
}

// attempts returns the documents of what was tried; a local attempt is one at this node.
func attempts(list []expert.Attempt, self peer.ID) []api.Attempt {
	out := make([]api.Attempt, 0, len(list))
	for _, t := range list {
		a := api.Attempt{Expert: t.Expert, Peer: t.Peer, Status: wire.StatusOf(t.Err).String(), MS: millis(t.Took), Op: t.Op}
		if t.Peer == "" {
			a.Peer = self.String()
		}
		if t.Err != nil {
			a.Detail = t.Err.Error()
		}
		out = append(out, a)
	}
	return out
}
