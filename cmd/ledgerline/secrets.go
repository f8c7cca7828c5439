package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"ledgerline/ledger/sqlstore"
)

// secretsCommand is `ledgerline secrets migrate`.
func secretsCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	if len(args) > 0 && slices.Contains([]string{"-h", "-help", "--help", "help"}, args[0]) {
		args = []string{"migrate", "-h"}
	}
	if len(args) == 0 || args[0] != "migrate" {
		return usagef("secrets wants the word migrate: ledgerline secrets migrate [-yes]")
	}
	flags := newFlags("secrets migrate", "Seals API keys, management tokens and keys of channels with CRYPTO_SECRET. The way back to New API ends there.", stderr)
	yes := flags.Bool("yes", false, "do it; without it the command says what it would do")
	if err := parseFlags(flags, args[1:]); err != nil {
		return err
	}
	cfg, err := loadConfig(getenv)
	if err != nil {
		return err
	}
	cfg.NodeType, cfg.looksOn = "slave", true // it migrates no schema
	var s stores
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	defer func() { s.close(log) }()
	if err := openDatabase(ctx, cfg, &s, log); err != nil {
		return err
	}
	plan, err := s.db.PlanSecrets(ctx)
	if errors.Is(err, sqlstore.ErrNoSecret) || errors.Is(err, sqlstore.ErrSecret) {
		return usagef("secrets migrate: %v", err)
	}
	if err != nil {
		return err
	}
	if !*yes {
		return saySecrets(stdout, plan)
	}
	said := 0
	done, err := s.db.MigrateSecrets(ctx, func(p sqlstore.SecretsPlan) {
		if n := p.Tokens + p.Access + p.Channels; n/5000 > said {
			said = n / 5000
			fmt.Fprintf(stderr, "secrets migrate: %d of %d\n", n, plan.Tokens+plan.Access+plan.Channels)
		}
	})
	if err != nil {
		return fmt.Errorf("%w; what is sealed stays sealed, run it again to go on", err)
	}
	fmt.Fprintf(stdout, "Sealed: %d API keys, %d management tokens, keys of %d channels. Keep CRYPTO_SECRET: without it they are lost.\n", done.Tokens, done.Access, done.Channels)
	return nil
}

// saySecrets says what would happen.
func saySecrets(w io.Writer, p sqlstore.SecretsPlan) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d API keys and %d management tokens would be replaced by keyed hashes, the keys of %d channels encrypted, all with CRYPTO_SECRET;\n", p.Tokens, p.Access, p.Channels)
	fmt.Fprintf(&b, "%d passwords would be hashed anew (argon2id) as their users log in. Clients and users notice nothing; a key can be shown only when it is made.\n", p.Passwords)
	if p.Sealed {
		b.WriteString("It was done before; what has come in plain text since then would be sealed.\n")
	} else {
		b.WriteString("The way back ends there: New API cannot be started on this database afterwards. Make a backup first.\n")
	}
	if len(p.Strangers) > 0 {
		fmt.Fprintf(&b, "These nodes run without this CRYPTO_SECRET, and must be started with it first: %s.\n", strings.Join(p.Strangers, ", "))
	}
	b.WriteString("Nothing was changed; ledgerline secrets migrate -yes does it.\n")
	_, err := io.WriteString(w, b.String())
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
