package checkpoint

import (
	"errors"
	"fmt"
	"strings"
)

// Choice is one expert of a checkpoint.
type Choice struct {
	Layer *Layer
	Index int
}

// Select returns the experts that both functions choose, by layer and index; nil functions choose all. Whatever they choose
// that does not exist, dense layers too, is passed over. When nothing is left the warning says what there is. The error is that of
// chosen layers which can't be used; the experts of the others are returned beside it.
func (c *Checkpoint) Select(layer func(name string) bool, index func(int) bool) (choices []Choice, warning string, err error) {
	var errs []error
	for _, l := range c.layers {
		if layer != nil && !layer(l.Name) {
			continue
		}
		if l.Err != nil {
			errs = append(errs, l.Err)
			continue
		}
		for i := range l.Experts {
			if index == nil || index(i) {
				choices = append(choices, Choice{l, i})
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return choices, "", err
	}
	if len(choices) == 0 {
		warning = fmt.Sprintf("%s: nothing is selected: the checkpoint has %s", c.dir, c.inventory())
	}
	return choices, warning, nil
}

// inventory lists the MoE layers with their experts.
func (c *Checkpoint) inventory() string {
	words := make([]string, 0, len(c.layers))
	for _, l := range c.layers {
		words = append(words, fmt.Sprintf("%s (experts 0-%d)", l.Name, l.Experts-1))
	}
	return "layers " + strings.Join(words, ", ")
}
