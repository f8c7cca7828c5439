package engines

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"strings"
)

// NodeModules returns a node_modules folder that holds the named npm packages (name@version, exact) with what they
// require: client SDKs that tests run under node. No package's install script runs.
func (c *Cache) NodeModules(ctx context.Context, packages ...string) (string, error) {
	sum := sha256.Sum256([]byte(strings.Join(packages, "\n")))
	name := "node-" + hex.EncodeToString(sum[:])[:12]
	dir, err := c.entry(ctx, name, "npm packages "+strings.Join(packages, ", "), func(ctx context.Context, dir string) error {
		npm, err := need("npm", "install Node.js with npm")
		if err != nil {
			return err
		}
		args := []string{"install", "--prefix", dir, "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", "--save-exact"}
		_, err = output(ctx, dir, npm, append(args, packages...)...)
		return err
	})
	return filepath.Join(dir, "node_modules"), err
}
