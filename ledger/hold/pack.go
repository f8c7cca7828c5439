package hold

import (
	"encoding/binary"
	"errors"
	"fmt"
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

// packedCall is the common form of a reserve, an extension, a settle and a void.
type packedCall struct {
	kind        byte
	hold        ledger.ID
	incarnation ledger.ID
	epoch       uint64
	x, y        int64 // reserve: min, want; extension: total; settle: charge
	user, token int64 // reserve only
}

func (c *packedCall) append(dst []byte) []byte {
	dst = append(append(dst, c.kind), c.hold[:]...)
	dst = appendInt64(appendInt64(dst, c.x), c.y)
	dst = append(c.incarnation.Append(dst), 0)
	dst = append(strconv.AppendUint(dst, c.epoch, 10), 0)
	return appendAccounts(dst, c.user, c.token)
}

func appendInt64(dst []byte, v int64) []byte { return binary.LittleEndian.AppendUint64(dst, uint64(v)) }

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
