package engines

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
)

// DockerCompose returns a command that runs Docker's Compose with these arguments: the plugin of the docker client where there is
// one, else Debian's docker-compose, which needs no Docker to check a file.
func (c *Cache) DockerCompose(ctx context.Context, args ...string) (*exec.Cmd, error) {
	if exec.CommandContext(ctx, "docker", "compose", "version").Run() == nil {
		return exec.CommandContext(ctx, "docker", append([]string{"compose"}, args...)...), nil
	}
	if path, err := exec.LookPath("docker-compose"); err == nil {
		return exec.CommandContext(ctx, path, args...), nil
	}
	root, err := c.debian(ctx, "docker-compose", "docker-compose")
	if err != nil {
		return nil, err
	}
	// The system's own, which has what apt did not unpack here; another one on the PATH has not.
	python := "/usr/bin/python3"
	if _, err := os.Stat(python); err != nil {
		if python, err = unpacked(root).path("python3"); err != nil {
			return nil, err
		}
	}
	script := filepath.Join(root, "usr", "bin", "docker-compose")
	cmd := exec.CommandContext(ctx, python, append([]string{script}, args...)...)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+filepath.Join(root, "usr", "lib", "python3", "dist-packages"))
	return cmd, nil
}
