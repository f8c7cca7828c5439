package sqlstore

import (
	"context"
	"errors"
	"fmt"
)

const (
	// adoptedMeta says whether New API's users were there before us ("true"). Then password hashes stay in New API's form, so
	// that the way back stays open (P7).
	adoptedMeta = "adopted"
	// rootQuota is what New API gives its first user: 200 US dollars.
	rootQuota = 100_000_000
	// setupVersion is what the table `setups` names as the program that set up.
	setupVersion = "ledgerline"
)

// EnsureRoot makes the first user, named root, if there is no user at all, deleted ones included, and notes that the installation is
// set up. hash returns the hash of its password; it is called only to make the user, perhaps more than once. The first call also
// notes whether New API's users were there before (Adopted). Call it after InitLog, on a master; two at once do no harm.
func (s *Store) EnsureRoot(ctx context.Context, hash func() (string, error)) (created bool, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		created, err = tx.ensureRoot(ctx, func() (NewUser, error) {
			password, err := hash()
			return NewUser{
				Username: "root", DisplayName: "Root User", Password: password, Role: RoleRoot, Quota: rootQuota, Note: "first start",
			}, err
		})
		return err
	})
	if errors.Is(err, ErrExists) {
		return false, nil // another master was faster
	}
	if err != nil {
		return false, fmt.Errorf("make the first user: %w", err)
	}
	return created, nil
}

func (tx *Tx) ensureRoot(ctx context.Context, root func() (NewUser, error)) (created bool, err error) {
	// The counter row of the change log is there since the migration: whoever holds it is alone here.
	if _, err := tx.lastChange(ctx, tx.ForUpdate()); err != nil {
		return false, err
	}
	var users, setups int
	if err := tx.QueryRow(ctx, "SELECT COUNT(*) FROM (SELECT id FROM users LIMIT 1) u", nil, &users); err != nil {
		return false, err
	}
	if err := tx.QueryRow(ctx, "SELECT COUNT(*) FROM (SELECT id FROM setups LIMIT 1) s", nil, &setups); err != nil {
		return false, err
	}
	_, err = tx.meta(ctx, adoptedMeta, "")
	if errors.Is(err, ErrNotFound) {
		err = tx.setMeta(ctx, adoptedMeta, fmt.Sprint(users > 0))
	}
	if err != nil {
		return false, err
	}
	if users == 0 {
		first, err := root()
		if err != nil {
			return false, err
		}
		if _, _, err := tx.createUser(ctx, first); err != nil {
			return false, err
		}
	}
	if setups == 0 {
		if _, err := tx.Exec(ctx, "INSERT INTO setups (version, initialized_at) VALUES (?, ?)", setupVersion, tx.s.now().Unix()); err != nil {
			return false, err
		}
	}
	return users == 0, nil
}

// Adopted reports whether the database was New API's before.
func (s *Store) Adopted(ctx context.Context) (bool, error) {
	text, err := s.Meta(ctx, adoptedMeta)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return text == "true", err
}

// SetUp reports whether the installation is set up, and whether there is a user with role root.
func (s *Store) SetUp(ctx context.Context) (done, root bool, err error) {
	err = s.View(ctx, func(tx *Tx) error {
		if err := tx.QueryRow(ctx, "SELECT COUNT(*) > 0 FROM setups", nil, &done); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "SELECT COUNT(*) > 0 FROM users WHERE role = ?", []any{RoleRoot}, &root)
	})
	if err != nil {
		return false, false, fmt.Errorf("read whether set-up is done: %w", err)
	}
	return done, root, nil
}

// SetUpRoot is the set-up by hand: it makes the first user under a chosen name and stores options. ErrExists: it was done before.
func (s *Store) SetUpRoot(ctx context.Context, name, hash string, options map[string]string) error {
	err := s.Tx(ctx, func(tx *Tx) error {
		created, err := tx.ensureRoot(ctx, func() (NewUser, error) {
			return NewUser{
				Username: name, DisplayName: "Root User", Password: hash, Role: RoleRoot, Quota: rootQuota, Note: "set-up",
			}, nil
		})
		if err != nil {
			return err
		}
		if !created {
			return ErrExists
		}
		return tx.setOptions(ctx, options)
	})
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}
