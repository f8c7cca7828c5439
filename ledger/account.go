package ledger

import (
	"hash/fnv"
	"strconv"
)

// AccountKind says whose account it is.
type AccountKind string

// The kinds of account. Users and tokens can be limited; a channel only counts what went through it.
const (
	UserAccount    AccountKind = "user"
	TokenAccount   AccountKind = "token"
	ChannelAccount AccountKind = "channel"
)

// accountKinds lists the kinds; index is a kind's place in it.
var accountKinds = [...]AccountKind{UserAccount, TokenAccount, ChannelAccount}

func (k AccountKind) index() int {
	switch k {
	case UserAccount:
		return 0
	case TokenAccount:
		return 1
	default:
		return 2
	}
}

// Account names one account.
type Account struct {
	Kind AccountKind
	ID   int64
}

// String returns the form "user/7" used in logs and by verify.
func (a Account) String() string { return string(a.Kind) + "/" + strconv.FormatInt(a.ID, 10) }

// Balance is the state of one account, in quota units. What is left is Granted − Charged.
type Balance struct {
	Granted  int64
	Charged  int64
	Requests int64
}

// Left returns Granted − Charged: what New API calls quota or remain_quota. It may be negative (L3's exceptions).
func (b Balance) Left() int64 { return b.Granted - b.Charged }

// Plus returns the sum of two balances.
func (b Balance) Plus(o Balance) Balance {
	return Balance{b.Granted + o.Granted, b.Charged + o.Charged, b.Requests + o.Requests}
}

// IsZero reports whether nothing ever moved.
func (b Balance) IsZero() bool { return b == Balance{} }

// Delta is what one event does to one account.
type Delta struct {
	Account Account
	Balance Balance
}

// Deltas appends to dst what e does to each account. Every projection uses this one function (L4).
func (e *Event) Deltas(dst []Delta) []Delta {
	add := func(kind AccountKind, id int64, b Balance) {
		if id != 0 && !b.IsZero() {
			dst = append(dst, Delta{Account{kind, id}, b})
		}
	}
	all := Balance{e.Granted, e.Charged, e.Requests}
	switch e.Kind {
	case KindUsageSettled, KindUsageRecovered, KindUsageAdjusted:
		add(UserAccount, e.User, Balance{Charged: e.Charged, Requests: e.Requests})
		add(TokenAccount, e.Token, Balance{Charged: e.Charged, Requests: e.Requests})
		add(ChannelAccount, e.Channel, Balance{Charged: e.Charged, Requests: e.Requests})
	case KindCreditGranted:
		add(UserAccount, e.User, Balance{Granted: e.Granted})
	case KindTokenLimited:
		add(TokenAccount, e.Token, Balance{Granted: e.Granted})
	case KindCreditAdopted, KindAccountOpened:
		switch e.Account {
		case TokenAccount:
			add(TokenAccount, e.Token, all)
		case ChannelAccount:
			add(ChannelAccount, e.Channel, all)
		default:
			add(UserAccount, e.User, all)
		}
	case KindAudit:
	}
	return dst
}

// Partition returns the partition of a user: FNV-1a (64 bit) of the decimal user id, modulo partitions (L5).
// It panics if partitions < 1.
func Partition(user int64, partitions int) int {
	h := fnv.New64a()
	var buf [20]byte
	_, _ = h.Write(strconv.AppendInt(buf[:0], user, 10))
	return int(h.Sum64() % uint64(partitions))
}

// OrderingKey returns the Kafka record key of a user: its decimal id.
func OrderingKey(user int64) []byte { return strconv.AppendInt(nil, user, 10) }
