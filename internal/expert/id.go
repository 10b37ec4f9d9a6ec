package expert

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// ID names one expert in a swarm. It prints as `expert-42`.
type ID uint64

const idPrefix = "expert-"

// String returns the canonical form, `expert-42`.
func (id ID) String() string { return idPrefix + strconv.FormatUint(uint64(id), 10) }

// ParseID reads `expert-42` or `42`: decimal, without sign or leading zeros. The error matches ErrInvalidArgument.
func ParseID(s string) (ID, error) {
	digits := strings.TrimPrefix(s, idPrefix)
	if !isDecimal(digits) {
		return 0, fmt.Errorf("%w: %q is no expert ID: expected expert-N or N, decimal, without sign or leading zeros", ErrInvalidArgument, s)
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %q is no expert ID: above 18446744073709551615", ErrInvalidArgument, s)
	}
	return ID(n), nil
}

// isDecimal tells whether s is a number as we write them: digits only, no leading zero but in "0" itself.
func isDecimal(s string) bool {
	if s == "" || (len(s) > 1 && s[0] == '0') {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// MarshalText writes the canonical form; JSON and YAML hold IDs as strings, since a uint64 does not fit a JavaScript number.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what ParseID reads.
func (id *ID) UnmarshalText(text []byte) error {
	v, err := ParseID(string(text))
	if err != nil {
		return err
	}
	*id = v
	return nil
}

// UnmarshalJSON reads the string forms and a bare number.
func (id *ID) UnmarshalJSON(data []byte) error {
	var s string
	if len(data) > 0 && data[0] == '"' {
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
	} else {
		s = string(data)
	}
	return id.UnmarshalText([]byte(s))
}
