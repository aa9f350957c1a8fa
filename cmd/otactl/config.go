package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// defaultServer is where otad serve listens for operators when not told.
const defaultServer = "https://127.0.0.1:8443"

// maxConfigBytes caps what is read of the configuration file.
const maxConfigBytes = 1 << 20

// config is the file of contexts. It holds tokens, so only its owner may read
// it.
type config struct {
	Current  string          `yaml:"current,omitempty"`
	Contexts []storedContext `yaml:"contexts,omitempty"`
}

// storedContext is one server with what it takes to speak to it. Token and CA
// are stored by value: moving the files they came from breaks nothing.
type storedContext struct {
	Name   string `yaml:"name"`
	Server string `yaml:"server"`
	Token  string `yaml:"token,omitempty"`
	CA     string `yaml:"ca"` // PEM
}

func (c *config) find(name string) *storedContext {
	for i := range c.Contexts {
		if c.Contexts[i].Name == name {
			return &c.Contexts[i]
		}
	}
	return nil
}

// put adds a context or replaces the one of its name, and makes it current.
func (c *config) put(s storedContext) {
	c.Current = s.Name
	if old := c.find(s.Name); old != nil {
		*old = s
		return
	}
	c.Contexts = append(c.Contexts, s)
}

// configDir is OTACTL_CONFIG_DIR, or otactl in the user's own.
func (a *app) configDir() (string, error) {
	if dir := a.env("OTACTL_CONFIG_DIR"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", hint(fmt.Errorf("find the configuration directory: %w", err), "set OTACTL_CONFIG_DIR")
	}
	return filepath.Join(dir, "otactl"), nil
}

// loadConfig reads the contexts; no file is no context.
func (a *app) loadConfig() (*config, error) {
	dir, err := a.configDir()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "config.yaml")
	raw, err := readSmall(path, maxConfigBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return &config{}, nil
	}
	if err != nil {
		return nil, err
	}
	var c config
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && len(bytes.TrimSpace(raw)) > 0 {
		return nil, hint(fail(exitFailed, "read %s: %w", path, err), "correct the file, or remove it and run otactl login again")
	}
	return &c, nil
}

func (a *app) saveConfig(c *config) error {
	dir, err := a.configDir()
	if err != nil {
		return err
	}
	raw, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "config.yaml"), raw)
}

// target is the server of this run and the credentials for it.
type target struct {
	server string
	token  string
	ca     []byte // PEM
	caFrom string // where ca came from, for messages
}

// resolve finds the server and credentials: flags first, then the environment,
// then the context. A context's credentials go to the context's own server and
// to no other.
func (a *app) resolve() (target, error) {
	var t target
	stored, err := a.chosenContext()
	if err != nil {
		return t, err
	}
	t.server = first(a.flags.server, a.env("OTACTL_SERVER"))
	if t.server == "" && stored != nil {
		t.server = stored.Server
	}
	if t.server == "" {
		t.server = defaultServer
	}
	if t.server, err = serverURL(t.server); err != nil {
		return t, err
	}
	if stored != nil && stored.Server != t.server {
		stored = nil
	}
	if t.token, err = a.resolveToken(stored); err != nil {
		return t, err
	}
	t.ca, t.caFrom, err = a.resolveCA(stored)
	return t, err
}

func (a *app) chosenContext() (*storedContext, error) {
	c, err := a.loadConfig()
	if err != nil {
		return nil, err
	}
	name := first(a.flags.context, a.env("OTACTL_CONTEXT"))
	if name == "" {
		return c.find(c.Current), nil
	}
	if s := c.find(name); s != nil {
		return s, nil
	}
	return nil, hint(fail(exitNotFound, "no context %q", name), "otactl context list shows those there are; otactl login makes one")
}

func (a *app) resolveToken(stored *storedContext) (string, error) {
	path := a.flags.tokenFile
	if path == "" {
		if token := a.env("OTACTL_TOKEN"); token != "" {
			return checkToken(token, "OTACTL_TOKEN")
		}
		path = a.env("OTACTL_TOKEN_FILE")
	}
	if path != "" {
		raw, err := readSmall(path, 4<<10)
		if err != nil {
			return "", hint(fmt.Errorf("read the API token: %w", err), "otad serve writes the first token to DATA/admin.token")
		}
		return checkToken(string(raw), path)
	}
	if stored != nil {
		return stored.Token, nil
	}
	return "", hint(fail(exitDenied, "no API token"),
		"pass --token-file DATA/admin.token (DATA: the directory of otad serve), set OTACTL_TOKEN, or run otactl login")
}

func (a *app) resolveCA(stored *storedContext) ([]byte, string, error) {
	path := first(a.flags.caFile, a.env("OTACTL_CA_FILE"))
	if path != "" {
		raw, err := readSmall(path, maxConfigBytes)
		if err != nil {
			return nil, path, hint(fmt.Errorf("read the CA certificate: %w", err), "otad serve writes it to DATA/ca.pem")
		}
		return raw, path, nil
	}
	if stored != nil {
		return []byte(stored.CA), "context " + stored.Name, nil
	}
	return nil, "", hint(usage("no CA certificate to know the server by"),
		"pass --ca-file DATA/ca.pem (DATA: the directory of otad serve), set OTACTL_CA_FILE, or run otactl login")
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
