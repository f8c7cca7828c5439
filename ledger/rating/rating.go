// Package rating compiles New API's billing expressions with expr-lang, for package ledger, which knows only the interface
// and stays free of the engine.
//
// It promises that a compiled expression is safe for concurrent use and bounded: no ranges, no functions over
// lists, at most maxSource bytes and maxNodes nodes, no access to anything but the usage, the client's
// request and the clock it was compiled with. It keeps no state, so a crash concerns it nowhere. It is called by whoever
// parses price books: the relay's catalog and `ledgerline rate`.
package rating

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // an image without a zone database must not change prices

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/vm"
	"github.com/shopspring/decimal"
	"github.com/tidwall/gjson"

	"ledgerline/ledger"
)

// Bounds of an expression (L7): New API's longest preset has a few hundred bytes.
const (
	maxSource = 16 << 10
	maxNodes  = 2000
)

// versionPrefix marks the only version of the language there is; it may be left out.
const versionPrefix = "v1:"

// Compiler returns a compiler for ledger.ParsePriceBookWith. now is the clock of hour(), weekday() and so on.
func Compiler(now func() time.Time) ledger.ExpressionCompiler {
	c := &clock{now: now, zones: make(map[string]*time.Location)}
	return func(source string) (ledger.Expression, error) { return compile(source, c) }
}

// expression is one compiled expression.
type expression struct {
	program *vm.Program
	uses    map[string]bool
	clock   *clock
}

func compile(source string, c *clock) (ledger.Expression, error) {
	if len(source) > maxSource {
		return nil, fmt.Errorf("expression of %d bytes, at most %d", len(source), maxSource)
	}
	text := strings.TrimPrefix(strings.TrimSpace(source), versionPrefix)
	look := &inspector{names: make(map[string]bool)}
	options := []expr.Option{
		expr.Env(environment{}),
		expr.AsFloat64(),
		expr.MaxNodes(maxNodes),
		expr.DisableAllBuiltins(),
		expr.Patch(look), // sees the tree before the optimizer
	}
	for _, name := range []string{"max", "min", "abs", "ceil", "floor"} {
		options = append(options, expr.EnableBuiltin(name))
	}
	program, err := expr.Compile(text, options...)
	if err != nil {
		return nil, fmt.Errorf("compile expression: %w", err)
	}
	if look.loops {
		return nil, errors.New("compile expression: ranges and functions over lists are not allowed")
	}
	return &expression{program: program, uses: look.names, clock: c}, nil
}

// inspector gathers the identifiers of an expression and looks for what could make it run long.
type inspector struct {
	names map[string]bool
	loops bool
}

// Visit is called by the compiler for every node.
func (i *inspector) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		i.names[n.Value] = true
	case *ast.PredicateNode:
		i.loops = true
	case *ast.BinaryNode:
		i.loops = i.loops || n.Operator == ".."
	}
}

// Uses reports whether the expression names the variable.
func (e *expression) Uses(variable string) bool { return e.uses[variable] }

// Price evaluates the expression. The result is the engine's float64 in its shortest decimal form; from there on the caller's
// arithmetic is exact (L8).
func (e *expression) Price(in ledger.ExpressionInput) (usd decimal.Decimal, tier string, err error) {
	env := environment{
		P: float64(in.Prompt), C: float64(in.Completion), Len: float64(in.Length),
		CR: float64(in.CacheRead), CC: float64(in.CacheWrite), CC1h: float64(in.CacheWrite1h),
		Img: float64(in.ImageIn), ImgO: float64(in.ImageOut), AI: float64(in.AudioIn), AO: float64(in.AudioOut),
	}
	env.Tier = func(name string, price any) (float64, error) {
		tier = name
		return number(price)
	}
	env.Param = func(path string) any {
		if len(in.Body) == 0 {
			return nil
		}
		return gjson.GetBytes(in.Body, path).Value()
	}
	env.Header = func(name string) string {
		if in.Header == nil {
			return ""
		}
		return in.Header(name)
	}
	env.Has = has
	env.setClock(e.clock)
	result, err := expr.Run(e.program, env)
	if err != nil {
		return decimal.Decimal{}, "", fmt.Errorf("run expression: %w", err)
	}
	f, err := number(result)
	if err != nil {
		return decimal.Decimal{}, "", fmt.Errorf("run expression: %w", err)
	}
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return decimal.Decimal{}, "", errors.New("run expression: the result is not a number")
	}
	return decimal.NewFromFloat(f), tier, nil
}

// environment is what an expression sees.
type environment struct {
	P    float64 `expr:"p"`     // input tokens, less the sub-categories that the expression prices
	C    float64 `expr:"c"`     // output tokens, likewise
	Len  float64 `expr:"len"`   // the whole input
	CR   float64 `expr:"cr"`    // cache read
	CC   float64 `expr:"cc"`    // cache write
	CC1h float64 `expr:"cc1h"`  // cache write for one hour
	Img  float64 `expr:"img"`   // image input
	ImgO float64 `expr:"img_o"` // image output
	AI   float64 `expr:"ai"`    // audio input
	AO   float64 `expr:"ao"`    // audio output

	Tier   func(name string, price any) (float64, error) `expr:"tier"`
	Param  func(path string) any                         `expr:"param"`
	Header func(name string) string                      `expr:"header"`
	Has    func(text, part any) bool                     `expr:"has"`

	Hour    func(zone ...string) (int, error) `expr:"hour"`
	Minute  func(zone ...string) (int, error) `expr:"minute"`
	Weekday func(zone ...string) (int, error) `expr:"weekday"` // 0 is Sunday
	Month   func(zone ...string) (int, error) `expr:"month"`
	Day     func(zone ...string) (int, error) `expr:"day"`
}

// setClock fills the functions of the time. The zone is an IANA name; none means UTC.
func (env *environment) setClock(c *clock) {
	read := func(part func(time.Time) int) func(...string) (int, error) {
		return func(zone ...string) (int, error) {
			at := c.now().UTC()
			if len(zone) > 0 && zone[0] != "" {
				place, err := c.zone(zone[0])
				if err != nil {
					return 0, err
				}
				at = at.In(place)
			}
			return part(at), nil
		}
	}
	env.Hour = read(time.Time.Hour)
	env.Minute = read(time.Time.Minute)
	env.Weekday = read(func(t time.Time) int { return int(t.Weekday()) })
	env.Month = read(func(t time.Time) int { return int(t.Month()) })
	env.Day = read(time.Time.Day)
}

// maxZones bounds the time zones that are remembered, since an expression may take their names from requests: more than one
// operator's price list names.
const maxZones = 64

// clock tells the time in zones, which it reads once.
type clock struct {
	now   func() time.Time
	mu    sync.Mutex
	zones map[string]*time.Location
}

func (c *clock) zone(name string) (*time.Location, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if place, ok := c.zones[name]; ok {
		return place, nil
	}
	place, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("time zone %q: %w", name, err)
	}
	if len(c.zones) < maxZones {
		c.zones[name] = place
	}
	return place, nil
}

// has reports whether a text contains a part; what is absent contains nothing.
func has(text, part any) bool {
	if text == nil || part == nil {
		return false
	}
	return strings.Contains(fmt.Sprint(text), fmt.Sprint(part))
}

// number makes a float64 of what an expression computes with.
func number(v any) (float64, error) {
	switch n := v.(type) {
	case float64:
		return n, nil
	case int:
		return float64(n), nil
	}
	return 0, fmt.Errorf("%v is not a number", v)
}
