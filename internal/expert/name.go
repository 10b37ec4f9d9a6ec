package expert

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// DefaultRevision is the revision of a name that states none; it stands in the ID's hash too.
const DefaultRevision = "main"

// namespace separates the hashes of names from all other uses of SHA-256.
const namespace = "kwaai-expert/v1"

// maxPart bounds each part of a name: Hugging Face repository names end at 96 bytes, git branches at 255.
const maxPart = 255

var wordPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// LayerName is a MoE layer of a checkpoint: `MODEL[@REVISION]/LAYER`.
type LayerName struct {
	Model    string
	Revision string // never empty; DefaultRevision where none was given
	Layer    string // the checkpoint's number, or the module's dotted path in encoder-decoder models
}

// Name is an expert of a checkpoint: `MODEL[@REVISION]/LAYER/INDEX`.
type Name struct {
	LayerName
	Index int
}

// Ref is what a user may write for NAME: exactly one of an ID, an expert's name, or a layer's name.
type Ref struct {
	ID    ID         // of the expert, also when it was written as a name; 0 with Layer
	Name  *Name      // nil when an ID was written
	Layer *LayerName // nil unless a layer was written
}

// String returns the name; the revision is left out when it is the default one.
func (l LayerName) String() string {
	if l.Revision == DefaultRevision {
		return l.Model + "/" + l.Layer
	}
	return l.Model + "@" + l.Revision + "/" + l.Layer
}

// String returns the name; the revision is left out when it is the default one.
func (n Name) String() string { return n.LayerName.String() + "/" + strconv.Itoa(n.Index) }

// Expert returns the name of one expert of the layer.
func (l LayerName) Expert(index int) Name { return Name{LayerName: l, Index: index} }

// ID derives the expert's ID: the first 8 bytes, big-endian, of SHA-256 over
// `kwaai-expert/v1` 0 model 0 revision 0 layer 0 index. Two strangers who host one expert agree without asking.
func (n Name) ID() ID {
	sum := sha256.Sum256([]byte(strings.Join([]string{namespace, n.Model, n.Revision, n.Layer, strconv.Itoa(n.Index)}, "\x00")))
	return ID(binary.BigEndian.Uint64(sum[:8]))
}

// String returns what was referred to, in its canonical form.
func (r Ref) String() string {
	switch {
	case r.Layer != nil:
		return r.Layer.String()
	case r.Name != nil:
		return r.Name.String()
	default:
		return r.ID.String()
	}
}

// ParseRef reads NAME: `expert-42`, `42`, `MODEL[@REVISION]/LAYER/INDEX` or `MODEL[@REVISION]/LAYER`. The error matches ErrInvalidArgument.
func ParseRef(s string) (Ref, error) {
	switch parts := strings.Split(s, "/"); len(parts) {
	case 1:
		id, err := ParseID(s)
		return Ref{ID: id}, err
	case 2:
		l, err := parseLayer(s, parts)
		if err != nil {
			return Ref{}, err
		}
		return Ref{Layer: &l}, nil
	case 3:
		l, err := parseLayer(s, parts)
		if err != nil {
			return Ref{}, err
		}
		// Nine digits fit an int32 on every machine; no layer comes near.
		if !isDecimal(parts[2]) || len(parts[2]) > 9 {
			return Ref{}, nameError(s, "the index %q is not a decimal number without leading zeros", parts[2])
		}
		index, err := strconv.Atoi(parts[2])
		if err != nil {
			return Ref{}, nameError(s, "the index %q is not a number", parts[2])
		}
		n := l.Expert(index)
		return Ref{ID: n.ID(), Name: &n}, nil
	default:
		return Ref{}, nameError(s, "too many slashes")
	}
}

// NewLayerName checks the parts of a layer's name; an empty revision becomes the default one.
func NewLayerName(model, revision, layer string) (LayerName, error) {
	if revision == "" {
		revision = DefaultRevision
	}
	l := LayerName{Model: model, Revision: revision, Layer: layer}
	switch {
	case !isWord(model):
		return LayerName{}, nameError(l.String(), "the model %q does not match %s", model, wordPattern)
	case isID(model):
		return LayerName{}, nameError(l.String(), "the model %q reads as an expert's ID", model)
	case !isWord(revision):
		return LayerName{}, nameError(l.String(), "the revision %q does not match %s", revision, wordPattern)
	case !isLayer(layer):
		return LayerName{}, nameError(l.String(), "the layer %q is neither a number nor a module's dotted path", layer)
	}
	return l, nil
}

func parseLayer(s string, parts []string) (LayerName, error) {
	model, revision, found := strings.Cut(parts[0], "@")
	if found && revision == "" {
		return LayerName{}, nameError(s, "nothing stands behind the @")
	}
	return NewLayerName(model, revision, parts[1])
}

func isWord(s string) bool { return len(s) <= maxPart && wordPattern.MatchString(s) }

// isID tells whether a model's name would be read as an ID: digits only, or expert-N.
func isID(s string) bool {
	digits := strings.TrimPrefix(s, idPrefix)
	return digits != "" && strings.Trim(digits, "0123456789") == ""
}

// isLayer accepts a number without leading zeros, or a dotted path that starts with a letter or an underscore.
func isLayer(s string) bool {
	if isDecimal(s) {
		return len(s) <= maxPart
	}
	return isWord(s) && (s[0] < '0' || s[0] > '9')
}

func nameError(s, format string, args ...any) error {
	return fmt.Errorf("%w: %q is no name: %s (expected expert-N, N, MODEL[@REVISION]/LAYER/INDEX or MODEL[@REVISION]/LAYER)",
		ErrInvalidArgument, s, fmt.Sprintf(format, args...))
}
