package hold

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"ledgerline/ledger"
)

// The formats that lua/common.lua describes, on this side.

// recordBytes is the size of one account's record: granted, charged, settled, held, open holds, at.
const recordBytes = 6 * 8

var errBadRecord = errors.New("the counters hold what this build did not write")

// The kinds of call that lua/calls.lua knows.
const (
	callReserve = 'R'
	callExtend  = 'E'
	callSettle  = 'S'
	callVoid    = 'V'
)

// packedCall is what a call of lua/calls.lua says.
type packedCall struct {
	kind        byte
	hold        ledger.ID
	incarnation ledger.ID
	epoch       uint64
	x, y        int64 // reserve: min, want; extension: total; settle: charge
	user, token int64 // reserve only
}

// asked is what an answer grants that names no amount.
func (c *packedCall) asked() int64 {
	switch c.kind {
	case callReserve:
		return c.y
	case callExtend:
		return c.x
	}
	return 0
}

// append appends what is its own; user and token are places among its group's accounts.
func (c *packedCall) append(dst []byte, user, token int) []byte {
	switch c.kind {
	case callReserve:
		dst = appendDouble(appendDouble(dst, c.x), c.y)
		return binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(dst, uint16(user)), uint16(token))
	case callExtend:
		return appendDouble(dst, c.x)
	case callSettle:
		return appendInt64(dst, c.x)
	}
	return dst
}

// What a group and a call of it take at most, nearly always; they only size an allocation.
const (
	groupBytes = 96
	callBytes  = 48
)

// maxGroup bounds the calls of a group, among which a hold that is named twice is looked for.
const maxGroup = 64

// appendCalls appends calls of one partition in their order, in groups of one incarnation and epoch that name no hold twice.
func appendCalls(dst []byte, calls []*call) []byte {
	for len(calls) > 0 {
		n := 1
		for n < min(len(calls), maxGroup) && fits(calls[:n], calls[n]) {
			n++
		}
		dst = appendGroup(dst, calls[:n])
		calls = calls[n:]
	}
	return dst
}

// fits reports whether c may be in a group behind others.
func fits(others []*call, c *call) bool {
	if c.incarnation != others[0].incarnation || c.epoch != others[0].epoch {
		return false
	}
	for _, o := range others {
		if o.hold == c.hold {
			return false
		}
	}
	return true
}

func appendGroup(dst []byte, calls []*call) []byte {
	var accounts []ledger.Account
	place := func(a ledger.Account) int {
		if a.ID == 0 {
			return 0
		}
		i := slices.Index(accounts, a)
		if i < 0 {
			i = len(accounts)
			accounts = append(accounts, a)
		}
		return i + 1
	}
	own := make([]byte, 0, len(calls)*callBytes)
	for _, c := range calls {
		own = c.append(own, place(ledger.Account{Kind: ledger.UserAccount, ID: c.user}), place(ledger.Account{Kind: ledger.TokenAccount, ID: c.token}))
	}
	dst = append(calls[0].incarnation.Append(dst), 0)
	dst = append(strconv.AppendUint(dst, calls[0].epoch, 10), 0)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(calls)))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(accounts)))
	for _, c := range calls {
		dst = append(dst, c.hold[:]...)
	}
	for _, c := range calls {
		dst = append(dst, c.kind)
	}
	for _, a := range accounts {
		dst = append(appendField(dst, a), 0)
	}
	return append(dst, own...)
}

// answer is one of lua/calls.lua's.
type answer struct {
	outcome     ledger.Outcome
	n           int64  // amount, what is left, or mask of accounts to load
	place       int    // of the account in the way
	user, token string // of an extension
}

// readAnswer takes the answer to c off a reply.
func readAnswer(reply string, c *packedCall) (a answer, rest string, err error) {
	if reply == "" {
		return a, "", errNoReply
	}
	code := reply[0]
	if code == 0 {
		return answer{outcome: ledger.OutcomeGranted, n: c.asked()}, reply[1:], nil
	}
	const fixed = 1 + 8 + 1
	if len(reply) < fixed {
		return a, "", fmt.Errorf("answer of %d bytes: %w", len(reply), errBadRecord)
	}
	a.outcome, a.place = ledger.Outcome(code-1), int(reply[fixed-1])
	a.n = int64(math.Float64frombits(binary.LittleEndian.Uint64([]byte(reply[1 : fixed-1]))))
	names := strings.SplitN(reply[fixed:], "\x00", 3)
	if len(names) < 3 {
		return a, "", fmt.Errorf("answer without its accounts: %w", errBadRecord)
	}
	a.user, a.token = names[0], names[1]
	return a, names[2], nil
}

func appendInt64(dst []byte, v int64) []byte { return binary.LittleEndian.AppendUint64(dst, uint64(v)) }

// appendDouble appends what Lua computes with: exact up to [MaxUnits].
func appendDouble(dst []byte, v int64) []byte {
	return binary.LittleEndian.AppendUint64(dst, math.Float64bits(float64(v)))
}

// appendField appends the name of an account in the hash of accounts: "u7", "t9".
func appendField(dst []byte, a ledger.Account) []byte {
	letter := byte('u')
	if a.Kind == ledger.TokenAccount {
		letter = 't'
	}
	return strconv.AppendInt(append(dst, letter), a.ID, 10)
}

func appendAccounts(dst []byte, user, token int64) []byte {
	if user != 0 {
		dst = appendField(dst, ledger.Account{Kind: ledger.UserAccount, ID: user})
	}
	dst = append(dst, 0)
	if token != 0 {
		dst = appendField(dst, ledger.Account{Kind: ledger.TokenAccount, ID: token})
	}
	return append(dst, 0)
}

// encodeHold writes what is held under a hold's id.
func encodeHold(h *ledger.OpenHold) []byte {
	return appendAccounts(appendInt64(nil, h.Amount), h.User, h.Token)
}

func appendSum(dst []byte, s *ledger.Sum) []byte {
	dst = append(appendField(dst, s.Account), 0)
	return appendInt64(appendInt64(appendInt64(dst, s.Granted), s.Charged), s.Settled)
}

func decodeField(field string) (ledger.Account, error) {
	kind := ledger.UserAccount
	switch {
	case strings.HasPrefix(field, "t"):
		kind = ledger.TokenAccount
	case !strings.HasPrefix(field, "u"):
		return ledger.Account{}, fmt.Errorf("account %q: %w", field, errBadRecord)
	}
	id, err := strconv.ParseInt(field[1:], 10, 64)
	if err != nil || id <= 0 {
		return ledger.Account{}, fmt.Errorf("account %q: %w", field, errBadRecord)
	}
	return ledger.Account{Kind: kind, ID: id}, nil
}

// decodeRecord reads an account's record; the empty one is that of an account that is not there.
func decodeRecord(record string) (account, error) {
	if record == "" {
		return account{at: -1}, nil
	}
	if len(record) != recordBytes {
		return account{}, fmt.Errorf("record of %d bytes: %w", len(record), errBadRecord)
	}
	at := func(n int) int64 { return int64(binary.LittleEndian.Uint64([]byte(record[8*n : 8*n+8]))) }
	return account{granted: at(0), charged: at(1), settled: at(2), held: at(3), open: at(4), at: at(5)}, nil
}

// decodeHold reads what is held under a hold's id.
func decodeHold(inc ledger.ID, id, value string) (ledger.OpenHold, error) {
	h := ledger.OpenHold{Incarnation: inc}
	if len(id) != len(h.Hold) || len(value) < 8 {
		return h, fmt.Errorf("hold %x: %w", id, errBadRecord)
	}
	copy(h.Hold[:], id)
	h.Amount = int64(binary.LittleEndian.Uint64([]byte(value[:8])))
	names := strings.Split(value[8:], "\x00")
	if len(names) != 3 || names[2] != "" {
		return h, fmt.Errorf("hold %s: %w", h.Hold, errBadRecord)
	}
	user, err := decodeField(names[0])
	if err != nil || user.Kind != ledger.UserAccount {
		return h, fmt.Errorf("hold %s: %w", h.Hold, errBadRecord)
	}
	h.User = user.ID
	if names[1] != "" {
		token, err := decodeField(names[1])
		if err != nil || token.Kind != ledger.TokenAccount {
			return h, fmt.Errorf("hold %s: %w", h.Hold, errBadRecord)
		}
		h.Token = token.ID
	}
	return h, nil
}
