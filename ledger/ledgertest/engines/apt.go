package engines

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// debian returns a folder into which the named Debian packages, and whatever of their dependencies the system lacks, were
// unpacked. Nothing is installed on the system, no service is started, no root is needed: apt works on package lists of
// its own in the cache, and dpkg only unpacks.
func (c *Cache) debian(ctx context.Context, name string, packages ...string) (string, error) {
	return c.debianFrom(ctx, "", name, packages...)
}

// debianFrom takes the packages from the given release of Debian, with all of their dependencies down to the C library;
// from "", the system's own release, only those that the system lacks.
func (c *Cache) debianFrom(ctx context.Context, release, name string, packages ...string) (string, error) {
	return c.entry(ctx, name, "Debian packages "+strings.Join(packages, ", "), func(ctx context.Context, dir string) error {
		const hint = "this way of installing works on Debian and its relatives; elsewhere install the server so that it is on the PATH"
		if _, err := need("apt-get", hint); err != nil {
			return err
		}
		apt, err := c.aptOptions(ctx, release)
		if err != nil {
			return err
		}
		plan, err := output(ctx, dir, "apt-get", append(apt, append([]string{"-s", "--no-install-recommends", "install"}, packages...)...)...)
		if err != nil {
			return err
		}
		missing := planned(plan)
		if len(missing) == 0 {
			return fmt.Errorf("apt has nothing to install for %s, yet the server is not on the PATH", strings.Join(packages, ", "))
		}
		debs := filepath.Join(dir, "debs")
		if err := os.Mkdir(debs, 0o755); err != nil {
			return err
		}
		if _, err := output(ctx, debs, "apt-get", append(append(apt, "download"), missing...)...); err != nil {
			return err
		}
		return unpack(ctx, debs, dir)
	})
}

// planned reads the package names out of what `apt-get -s install` prints: lines "Inst NAME (VERSION …)".
func planned(plan string) []string {
	var names []string
	for line := range strings.Lines(plan) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Inst" {
			names = append(names, f[1])
		}
	}
	return names
}

// aptOptions fetches the package lists of a release into the cache, by the sources the system names, and returns the
// options that make apt use them.
func (c *Cache) aptOptions(ctx context.Context, release string) ([]string, error) {
	home := filepath.Join(c.dir, "apt"+release)
	lists, archives := filepath.Join(home, "lists"), filepath.Join(home, "cache")
	for _, d := range []string{filepath.Join(lists, "partial"), filepath.Join(archives, "archives", "partial")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	lock, err := acquire(ctx, filepath.Join(c.dir, ".apt.lock"))
	if err != nil {
		return nil, err
	}
	defer lock.release()
	options := []string{
		"-q",
		"-o", "Dir::State::Lists=" + lists,
		"-o", "Dir::Cache=" + archives,
		"-o", "APT::Sandbox::User=root", // the user _apt may not enter a home folder
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::Retries=3",
	}
	if release != "" {
		other, err := otherRelease(ctx, home, release)
		if err != nil {
			return nil, err
		}
		options = append(options, other...)
	}
	if _, err := output(ctx, c.dir, "apt-get", append(options, "update")...); err != nil {
		return nil, err
	}
	return options, nil
}

// otherRelease returns the options that point apt at another release of Debian, on the mirror that the system uses, and
// at a machine on which nothing is installed.
func otherRelease(ctx context.Context, home, release string) ([]string, error) {
	targets, err := output(ctx, home, "apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(LABEL) $(REPO_URI)")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(targets) {
		mirror, ok := strings.CutPrefix(strings.TrimSpace(line), "Debian main Debian ")
		if !ok {
			continue
		}
		sources, status := filepath.Join(home, "sources.list"), filepath.Join(home, "status")
		err := errors.Join(
			os.WriteFile(sources, []byte("deb "+mirror+" "+release+" main\n"), 0o644),
			os.WriteFile(status, nil, 0o644),
		)
		return []string{
			"-o", "Dir::Etc::SourceList=" + sources, "-o", "Dir::Etc::SourceParts=/dev/null", "-o", "Dir::State::Status=" + status,
		}, err
	}
	return nil, fmt.Errorf("find Debian's mirror: %w: apt here has no source of Debian", errors.ErrUnsupported)
}

func unpack(ctx context.Context, debs, dir string) error {
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range files {
		if _, err := output(ctx, dir, "dpkg-deb", "--extract", deb, dir); err != nil {
			return err
		}
	}
	return os.RemoveAll(debs)
}

// unpacked builds commands that run programs out of an unpacked folder. The empty folder stands for the system itself.
type unpacked string

func (u unpacked) path(program string) (string, error) {
	if u == "" {
		return exec.LookPath(program)
	}
	for _, bin := range []string{"usr/bin", "usr/sbin"} {
		path := filepath.Join(string(u), bin, program)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s in %s: %w", program, string(u), errors.ErrUnsupported)
}

// environ is the process's environment with the unpacked libraries first. They lie in usr/lib/ARCH-linux-gnu.
func (u unpacked) environ() []string {
	env := os.Environ()
	if u == "" {
		return env
	}
	dirs, _ := filepath.Glob(filepath.Join(string(u), "usr/lib/*-linux-gnu*"))
	older, _ := filepath.Glob(filepath.Join(string(u), "lib/*-linux-gnu*"))
	path := strings.Join(append(dirs, older...), ":")
	if old := os.Getenv("LD_LIBRARY_PATH"); old != "" {
		path += ":" + old
	}
	return append(env, "LD_LIBRARY_PATH="+path)
}
