package sqlstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"ledgerline/ledger"
)

// secretsMeta holds how secrets are kept, as JSON: nothing while they are as New API keeps them.
const secretsMeta = "secrets"

// sealState is the value of secretsMeta.
type sealState struct {
	State       string `json:"state,omitempty"`       // "", sealing, sealed
	Fingerprint string `json:"fingerprint,omitempty"` // of the CRYPTO_SECRET
}

// From sealing on, every new secret is sealed; those that are there are sealed one after the other until it is sealed.
const (
	stateSealing = "sealing"
	stateSealed  = "sealed"
)

func (tx *Tx) sealState(ctx context.Context, lock string) (state sealState, err error) {
	text, err := tx.meta(ctx, secretsMeta, lock)
	if errors.Is(err, ErrNotFound) || err == nil && text == "" {
		return sealState{}, nil
	}
	if err == nil {
		err = json.Unmarshal([]byte(text), &state)
	}
	if err != nil {
		return state, fmt.Errorf("read how secrets are kept: %w", err)
	}
	return state, nil
}

// sealing reports whether a secret that is written now must be sealed. It holds the state until the transaction ends, so that
// `secrets migrate` finds what was written before it began.
func (tx *Tx) sealing(ctx context.Context) (bool, error) {
	state, err := tx.sealState(ctx, tx.s.forShare)
	if err != nil || state.State == "" {
		return false, err
	}
	if tx.s.sealer == nil || tx.s.sealer.fingerprint != state.Fingerprint {
		return false, ErrSecret
	}
	return true, nil
}

// ErrSecret means that keys in the database are sealed with another CRYPTO_SECRET than this process has, or that it has none.
var ErrSecret = errors.New("keys in this database are sealed: CRYPTO_SECRET must be set to what it was when they were")

// CheckSecret returns ErrSecret if this process cannot read the database's keys.
func (s *Store) CheckSecret(ctx context.Context) error {
	return s.View(ctx, func(tx *Tx) error {
		state, err := tx.sealState(ctx, "")
		if err == nil && state.State != "" && (s.sealer == nil || s.sealer.fingerprint != state.Fingerprint) {
			err = ErrSecret
		}
		return err
	})
}

// WayBack reports whether New API can be started on the database again: it was New API's, and its secrets were not migrated.
func (s *Store) WayBack(ctx context.Context) (open bool, err error) {
	open, err = s.Adopted(ctx)
	if err != nil || !open {
		return false, err
	}
	err = s.View(ctx, func(tx *Tx) error {
		state, err := tx.sealState(ctx, "")
		open = state.State == ""
		return err
	})
	return open, err
}

// keepKey returns what to store for a new API key.
func (tx *Tx) keepKey(ctx context.Context, key string) (string, error) {
	sealing, err := tx.sealing(ctx)
	if err != nil || !sealing {
		return key, err
	}
	return tx.s.sealer.sealToken(key), nil
}

// keepAccess returns what to store for a management token; one that is sealed stays.
func (tx *Tx) keepAccess(ctx context.Context, token string) (string, error) {
	sealing, err := tx.sealing(ctx)
	if err != nil || !sealing || token == "" || isSealedAccess(token) {
		return token, err
	}
	return tx.s.sealer.sealAccess(token), nil
}

// keepChannel returns what to store for the key of a channel.
func (tx *Tx) keepChannel(ctx context.Context, key string) (string, error) {
	sealing, err := tx.sealing(ctx)
	if err != nil || !sealing || key == "" || isSealedChannel(key) {
		return key, err
	}
	return tx.s.sealer.sealChannel(key)
}

// reveal opens a channel's key. One that cannot be opened stays as it is stored: upstreams refuse it, and nothing overwrites it.
func (s *Store) reveal(r *ChannelRow) {
	key, err := s.sealer.openChannel(r.Key)
	if err != nil {
		s.log.Warn("the key of a channel cannot be read", "channel", r.ID, "error", err)
		return
	}
	r.Key = key
}

// noteSecret says which secret an incarnation's node runs with.
func (tx *Tx) noteSecret(ctx context.Context, id ledger.ID) error {
	fingerprint := ""
	if tx.s.sealer != nil {
		fingerprint = tx.s.sealer.fingerprint
	}
	_, err := tx.Exec(ctx, "INSERT INTO ledger_node_secrets (producer, fingerprint) VALUES (?, ?)"+tx.s.onConflict("producer", "fingerprint"), id[:], fingerprint)
	return err
}

// strangers returns the names of live nodes that run without the secret of this process, or with another.
func (tx *Tx) strangers(ctx context.Context) (nodes []string, err error) {
	err = tx.each(ctx, "SELECT p.node FROM ledger_producers p LEFT JOIN ledger_node_secrets n ON n.producer = p.id WHERE p.state = ? AND COALESCE(n.fingerprint, '') <> ?",
		[]any{ProducerLive, tx.s.sealer.fingerprint}, func(scan func(...any) error) error {
			var node string
			err := scan(&node)
			nodes = append(nodes, node)
			return err
		})
	slices.Sort(nodes)
	return slices.Compact(nodes), err
}
