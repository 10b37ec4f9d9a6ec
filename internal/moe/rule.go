package moe

import (
	"errors"
	"fmt"
	"math"
)

// ErrRouting says that rows cannot be routed: the rule is not known, its configuration contradicts itself, or a choice
// that came from outside makes no sense.
var ErrRouting = errors.New("routing failed")

// Score is what a router makes of its logits.
type Score uint8

// The scores.
const (
	ScoreSoftmax Score = iota // the softmax over all experts
	ScoreSigmoid              // the sigmoid of each logit
	ScoreLogit                // the logit itself
)

// GroupScore is how groups of experts are ranked where only the best groups may be chosen from.
type GroupScore uint8

// The group scores.
const (
	GroupMax    GroupScore = iota // the best expert's; experts of other groups count as 0
	GroupTopTwo                   // the sum of the two best; experts of other groups count as minus infinity
)

// Weight is what an expert's weight starts from.
type Weight uint8

// The weights.
const (
	WeightScore         Weight = iota // the chosen expert's score
	WeightChosenSoftmax               // the softmax over the chosen logits
	WeightSigmoid                     // the sigmoid of the chosen logit
)

// Norm is what the chosen weights are divided by.
type Norm uint8

// The norms.
const (
	NormNone   Norm = iota
	NormSum         // their sum, plus Floor
	NormSumMin      // their sum, or Floor where that is more
	NormPower       // their NormP-norm
)

// Rule is how a family chooses experts and weighs them: data, so that a new family is an entry in families.go. The parts are
// applied in the order of the fields.
type Rule struct {
	TopK  int   // experts for each row
	Score Score // of each expert; the router's choice bias is added for the choice alone
	// Groups of neighbouring experts, of which the best KeptGroups may be chosen from; 0 or 1: no such limit.
	Groups, KeptGroups int
	GroupScore         GroupScore
	Weight             Weight
	Norm               Norm
	NormP, Floor       float64
	Scale              float64 // the weights are multiplied by it
	// Jitter above 0 makes the rule sparsemixer (phimoe): the two best, each with its probability among the logits that
	// are within twice this of it.
	Jitter float64
	// Capacity above 0: an expert takes the first so many rows of a sequence that chose it; others are dropped.
	Capacity int
	// ScaleInput: the weight multiplies the expert's input, not its output.
	ScaleInput bool
	// BalanceCoef is the load-balancing loss's coefficient in training.
	BalanceCoef float64
}

// Validate compares the rule with the number of experts. The error matches ErrRouting.
func (r Rule) Validate(experts int) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrRouting, fmt.Sprintf(format, args...))
	}
	kept := experts
	if r.Groups > 1 {
		if experts%r.Groups != 0 {
			return bad("%d experts cannot be split into %d groups of one size", experts, r.Groups)
		}
		if r.KeptGroups < 1 || r.KeptGroups > r.Groups {
			return bad("%d groups are to be kept of %d", r.KeptGroups, r.Groups)
		}
		kept = experts / r.Groups * r.KeptGroups
	}
	switch {
	case experts < 1:
		return bad("there are no experts")
	case r.TopK < 1 || r.TopK > experts:
		return bad("each row takes %d experts of %d", r.TopK, experts)
	case r.TopK > kept && r.GroupScore == GroupTopTwo:
		return bad("each row takes %d experts, but the %d kept groups have %d", r.TopK, r.KeptGroups, kept)
	case r.Jitter > 0 && r.TopK != 2:
		return bad("sparsemixer takes 2 experts for each row, not %d", r.TopK)
	case r.Capacity > 0 && r.TopK != 1:
		return bad("a capacity is for 1 expert for each row, not %d", r.TopK)
	case math.IsNaN(r.Scale) || r.Scale == 0:
		return bad("the weights are scaled by %v", r.Scale)
	case r.Norm == NormPower && !(r.NormP > 0):
		return bad("there is no %v-norm", r.NormP)
	}
	return nil
}
