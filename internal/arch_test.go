package internal_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/kwaai/kwaaid/"

// floors of the house: imports point to a lower one, never sideways. What stands below a package's directory (kernel/internal)
// belongs to the package. Explained in doc.go.
var floors = map[string]int{
	"proto":               -1,
	"internal/codec":      0,
	"internal/kernel":     0,
	"internal/npy":        0,
	"internal/sdnotify":   0,
	"internal/expert":     1,
	"internal/checkpoint": 2,
	"internal/wire":       2,
	"internal/registry":   2,
	"internal/api":        2,
	"internal/p2p":        3,
	"internal/discovery":  3,
	"internal/rpc":        3,
	"internal/serving":    3,
	"internal/dispatch":   3,
	"internal/moe":        3,
	"internal/averaging":  3,
	"internal/gateway":    3,
	"internal/config":     4,
	"internal/swarmtest":  4,
	"internal/node":       5,
	"internal/demo":       6,
	"internal/doctor":     6,
	"internal":            7, // the map and this guard
	"cmd":                 7,
}

// forTests tells which packages may be imported by tests alone.
func forTests(importPath string) bool { return strings.HasSuffix(importPath, "test") }

// instead names the interface to use, by who imports and whom.
var instead = map[[2]string]string{
	{"internal/dispatch", "internal/discovery"}:  "dispatch.Finder",
	{"internal/dispatch", "internal/rpc"}:        "dispatch.Caller",
	{"internal/dispatch", "internal/serving"}:    "dispatch.Local",
	{"internal/rpc", "internal/serving"}:         "rpc.Handler",
	{"internal/discovery", "internal/serving"}:   "discovery.Hosted",
	{"internal/moe", "internal/dispatch"}:        "moe.Dispatcher",
	{"internal/averaging", "internal/discovery"}: "averaging.Finder",
	{"internal/averaging", "internal/serving"}:   "averaging.Parameters",
	{"internal/gateway", "internal/dispatch"}:    "gateway.Inference",
	{"internal/gateway", "internal/moe"}:         "gateway.Inference",
	{"internal/gateway", "internal/node"}:        "gateway.Node",
}

// listed is what `go list -json` says of a package.
type listed struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func TestImportsPointDown(t *testing.T) {
	list := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	list.Dir = ".."
	var stderr bytes.Buffer
	list.Stderr = &stderr
	out, err := list.Output()
	require.NoError(t, err, stderr.String())
	var packages []listed
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		packages = append(packages, p)
	}
	require.Greater(t, len(packages), 10, "go list found the module")
	if wrong := upward(packages); len(wrong) > 0 {
		t.Error(strings.Join(wrong, "\n"))
	}
}

// upward returns what is wrong with the packages' imports.
func upward(packages []listed) []string {
	var wrong []string
	for _, p := range packages {
		from, ok := place(p.ImportPath)
		if !ok {
			continue
		}
		fromFloor, known := floors[from]
		if !known {
			wrong = append(wrong, from+" stands on no floor: give it one here and in doc.go")
			continue
		}
		for _, imported := range p.Imports {
			to, ok := place(imported)
			toFloor := floors[to]
			switch {
			case !ok:
			case forTests(imported):
				wrong = append(wrong, fmt.Sprintf("%s imports %s, which is for tests", from, strings.TrimPrefix(imported, module)))
			case to == from:
			case toFloor >= fromFloor:
				remedy := cmp.Or(instead[[2]string{from, to}], "a small interface in "+from+", which node gives to whoever can")
				wrong = append(wrong, fmt.Sprintf("%s (floor %d) imports %s (floor %d): use %s", from, fromFloor, to, toFloor, remedy))
			}
		}
		// Tests may look sideways, at the real part behind an interface of theirs, but not up: that would be a test of the other.
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			if to, ok := place(imported); ok && to != from && !forTests(imported) && floors[to] > fromFloor {
				wrong = append(wrong, fmt.Sprintf("a test of %s (floor %d) imports %s (floor %d): it belongs there", from, fromFloor, to, floors[to]))
			}
		}
	}
	slices.Sort(wrong)
	return slices.Compact(wrong)
}

// place returns where in the house an import path stands: a key of floors, if it is there. False: outside the house.
func place(importPath string) (string, bool) {
	rest, ok := strings.CutPrefix(importPath, module)
	if !ok {
		return "", false
	}
	parts := strings.Split(rest, "/")
	switch {
	case parts[0] == "internal" && len(parts) > 1:
		return path.Join(parts[:2]...), true
	case parts[0] == "examples": // what users copy; modules of their own
		return "", false
	default:
		return parts[0], true
	}
}

func TestUpward_FindsWhatIsWrong(t *testing.T) {
	in := func(names ...string) []string {
		for i := range names {
			names[i] = module + names[i]
		}
		return names
	}
	wrong := upward([]listed{
		{ImportPath: module + "internal/rpc", Imports: append(in("internal/expert", "internal/serving", "proto/kwaai/expert/v1"), "net")},
		{ImportPath: module + "internal/wire", Imports: in("internal/registry"), TestImports: in("internal/swarmtest", "internal/api")},
		{ImportPath: module + "internal/kernel/internal/gen", Imports: in("internal/kernel/internal/consts")},
		{ImportPath: module + "internal/node", Imports: in("internal/swarmtest"), XTestImports: in("internal/rpc")},
		{ImportPath: module + "internal/codec", Imports: in("internal/codec/codectest"), TestImports: in("internal/codec/codectest")},
		{ImportPath: module + "internal/api", XTestImports: in("internal/node")},
		{ImportPath: module + "internal/misc"},
		{ImportPath: "example.org/other/internal/rpc", Imports: in("cmd/kwaaid")},
	})
	require.Equal(t, []string{
		"a test of internal/api (floor 2) imports internal/node (floor 5): it belongs there",
		"internal/codec imports internal/codec/codectest, which is for tests",
		"internal/misc stands on no floor: give it one here and in doc.go",
		"internal/node imports internal/swarmtest, which is for tests",
		"internal/rpc (floor 3) imports internal/serving (floor 3): use rpc.Handler",
		"internal/wire (floor 2) imports internal/registry (floor 2): use a small interface in internal/wire, which node gives to whoever can",
	}, wrong)
}

// registry, and every plan.go, decide as functions of state, time and dice: nothing in them starts, waits, reads a clock, rolls
// dice of its own or touches the world. A mutex is fine there.
func TestPureStaysPure(t *testing.T) {
	files, err := filepath.Glob("registry/*.go")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	plans, err := filepath.Glob("*/plan.go")
	require.NoError(t, err)
	for _, name := range append(files, plans...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, wrong := range impurities(fset, file) {
			t.Error(wrong)
		}
	}
}

// worldly packages have no place in what is pure, with those below them.
var worldly = []string{"context", "net", "os", "syscall", "crypto/rand", "runtime", "log"}

// clocks are what package time offers beside arithmetic.
var clocks = []string{"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "Tick", "NewTimer", "NewTicker"}

// ownDice are what math/rand offers beside its global source.
var ownDice = []string{"New", "NewPCG", "NewChaCha8", "NewZipf", "Rand", "Source", "PCG", "ChaCha8", "Zipf"}

// impurities returns what a file does that is not pure, with its place.
func impurities(fset *token.FileSet, file *ast.File) []string {
	var wrong []string
	found := func(at ast.Node, what string) {
		wrong = append(wrong, fmt.Sprintf("%s: %s", fset.Position(at.Pos()), what))
	}
	var timeName, randName string
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			found(spec, err.Error())
			continue
		}
		for _, w := range worldly {
			if imported == w || strings.HasPrefix(imported, w+"/") {
				found(spec, "imports "+imported)
			}
		}
		name := path.Base(imported)
		if imported == "math/rand/v2" {
			name = "rand"
		}
		if spec.Name != nil {
			name = spec.Name.Name
		}
		switch imported {
		case "time":
			timeName = name
		case "math/rand", "math/rand/v2":
			randName = name
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			found(n, "starts a goroutine")
		case *ast.SelectStmt, *ast.SendStmt:
			found(n, "waits on a channel")
		case *ast.UnaryExpr:
			if n.Op == token.ARROW {
				found(n, "waits on a channel")
			}
		case *ast.SelectorExpr:
			name := ""
			if x, ok := n.X.(*ast.Ident); ok {
				name = x.Name
			}
			switch {
			case name == timeName && name != "" && slices.Contains(clocks, n.Sel.Name):
				found(n, "asks the clock with time."+n.Sel.Name+": take the time as an argument")
			case name == randName && name != "" && !slices.Contains(ownDice, n.Sel.Name):
				found(n, "rolls global dice with rand."+n.Sel.Name+": take the dice as an argument")
			case n.Sel.Name == "Wait":
				found(n, "waits")
			}
		}
		return true
	})
	return wrong
}

func TestImpurities_FindsEachKind(t *testing.T) {
	cases := map[string]string{
		`import "os"`:                                                   "imports os",
		`import "net/http"`:                                             "imports net/http",
		`import "context"`:                                              "imports context",
		`func f() { go f() }`:                                           "starts a goroutine",
		`func f(c chan int) { c <- 1 }`:                                 "waits on a channel",
		`func f(c chan int) { <-c }`:                                    "waits on a channel",
		`func f() { select {} }`:                                        "waits on a channel",
		`func f(c interface{ Wait() }) { c.Wait() }`:                    "waits",
		`import "time"; var t = time.Now()`:                             "asks the clock with time.Now",
		`import clock "time"; var f = clock.AfterFunc`:                  "asks the clock with time.AfterFunc",
		`import "math/rand/v2"; var n = rand.IntN(3)`:                   "rolls global dice with rand.IntN",
		`import "time"; var d = time.Second`:                            "",
		`import "math/rand/v2"; func f(r *rand.Rand) { r.IntN(3) }`:     "",
		`import "sync"; func f(m *sync.Mutex) { m.Lock(); m.Unlock() }`: "",
	}
	for source, want := range cases {
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, "x.go", "package x; "+source, parser.SkipObjectResolution)
		require.NoError(t, err, source)
		wrong := impurities(fset, file)
		if want == "" {
			require.Empty(t, wrong, source)
			continue
		}
		require.Len(t, wrong, 1, source)
		require.Contains(t, wrong[0], want, source)
	}
}
