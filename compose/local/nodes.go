//go:build unix

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"ledgerline/ledger/ledgertest/engines"
)

// nodesKind is the group of ledgerline's own processes, nginxKind that of what stands in front of them.
const (
	nodesKind engines.Kind = "nodes"
	nginxKind engines.Kind = "nginx"
)

// nginxPort is where clients go if it is free.
const nginxPort = 13000

// services are the nodes, by the names that compose.yaml gives them.
var services = []string{"master", "slave1", "slave2"}

// startNodes starts a master, two slaves, and nginx with the configuration of compose.yaml, on engines that run. What runs of
// them already stays.
func startNodes(ctx context.Context, cache *engines.Cache, dir, binary, env string, running []record) (records []record, err error) {
	binary, err = filepath.Abs(binary)
	if err != nil {
		return nil, fmt.Errorf("find the program: %w", err)
	}
	secret, err := sessionSecret(dir)
	if err != nil {
		return nil, err
	}
	root, err := engines.SourceTree()
	if err != nil {
		return nil, err
	}
	records = running
	begin := func(kind engines.Kind, name string, start func(engines.Options) (*engines.Server, error), port int) error {
		if slices.ContainsFunc(records, func(r record) bool { return r.Name == name }) {
			return nil
		}
		o := engines.Options{Cache: cache, Dir: filepath.Join(dir, string(kind), name), Detach: true}
		if engines.PortFree(port) {
			o.Port = port
		}
		s, err := start(o)
		if err != nil {
			return err
		}
		more, err := recordsOf(kind, []*engines.Server{s})
		records = append(records, more...)
		return err
	}
	for i, name := range services {
		kind := "slave"
		if i == 0 {
			kind = "master" // first: it migrates
		}
		program := engines.Program{Name: name, Ready: "/readyz", Command: func(port int, dir string) *exec.Cmd {
			cmd := exec.Command(binary) //nolint:noctx // it outlives this process
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "PORT="+strconv.Itoa(port), "NODE_TYPE="+kind, "NODE_NAME="+name, "SESSION_SECRET="+secret, "TRUSTED_PROXIES=127.0.0.0/8")
			for line := range strings.Lines(env) {
				cmd.Env = append(cmd.Env, strings.ReplaceAll(strings.TrimSpace(line), "'", ""))
			}
			return cmd
		}}
		err := begin(nodesKind, name, func(o engines.Options) (*engines.Server, error) { return engines.StartProgram(ctx, o, program) }, nginxPort+1+i)
		if err != nil {
			return records, err
		}
	}
	err = begin(nginxKind, "nginx", func(o engines.Options) (*engines.Server, error) {
		return engines.StartNginx(ctx, o, func(port int, dir string) (string, error) {
			return engines.NginxInFront(filepath.Join(root, "compose", "nginx.conf"), services, addressesOf(records, services), port, dir)
		})
	}, nginxPort)
	return records, err
}

func addressesOf(records []record, names []string) (list []string) {
	for _, name := range names {
		list = append(list, addresses(records, name)...)
	}
	return list
}

// sessionSecret is one for all nodes, kept so that logins outlive a restart.
func sessionSecret(dir string) (string, error) {
	file := filepath.Join(dir, secretFile)
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		text = []byte(rand.Text())
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("keep the secret of logins: %w", err)
	}
	return string(text), nil
}
