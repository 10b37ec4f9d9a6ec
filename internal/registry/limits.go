package registry

// Limits bounds what a Table remembers. What is used least recently is forgotten first.
type Limits struct {
	Experts            int // experts known
	ProvidersPerExpert int // providers remembered of one expert
	Peers              int // peers remembered
}

// DefaultLimits keeps a full table under 100 MB (see TestTable_HundredThousandExpertsStayUnder100MB).
func DefaultLimits() Limits {
	return Limits{
		Experts: 100_000,
		// A caller spreads its rows well over far fewer; more would only be memory that strangers fill.
		ProvidersPerExpert: 16,
		Peers:              16_384,
	}
}
