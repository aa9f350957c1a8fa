package device

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/otad/otad/agent/command"
	"github.com/otad/otad/agent/disk"
	agenthttp "github.com/otad/otad/agent/http"
	"github.com/otad/otad/pkg/ota"
)

// Errors of the directory.
var (
	// ErrNotEnrolled: the directory holds no device.
	ErrNotEnrolled = errors.New("not enrolled")
	// ErrEnrolled: the directory holds a device already.
	ErrEnrolled = errors.New("already enrolled")
	// ErrRunning: another agent works in the directory.
	ErrRunning = errors.New("another agent uses the directory")
)

// Names in the directory.
const (
	settingsName = "agent.json"
	keyName      = "device.key"
	certName     = "device.crt"
	caName       = "ca.pem"
	rootName     = "root.json"
	stateName    = "state"
	lockName     = "agent.lock"
)

const maxFile = 256 << 10 // of anything read here

// Settings is agent.json. It is read when the agent starts.
type Settings struct {
	DeviceID  string       `json:"deviceId"`
	Hardware  string       `json:"hardware"`
	ServerURL string       `json:"serverUrl"`
	MQTTURL   string       `json:"mqttUrl"`
	Factory   ota.Manifest `json:"factory,omitzero"` // of the image put in at enrollment

	// What the owner of the device may write here.
	Timezone string   `json:"timezone,omitempty"` // of its wall clock, as in Europe/Berlin; empty: the system's
	Consent  []string `json:"consent,omitempty"`  // program and arguments that are asked before a new image is activated, see agent/command
	// Actions are what the server may have run, by name; empty: nothing.
	Actions map[string]command.Action `json:"actions,omitempty"`
	Logs    command.Logs              `json:"logs,omitzero"` // what the command collect-logs collects
}

// dir is an agent's directory.
type dir string

func (d dir) path(name string) string { return string(d) + "/" + name }

func (d dir) read(name string) ([]byte, error) {
	return disk.ReadFile(disk.OS{}, d.path(name), maxFile)
}

func (d dir) write(name string, b []byte) error {
	if err := disk.WriteFile(disk.OS{}, string(d), name, b, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", d.path(name), err)
	}
	return nil
}

// lock keeps other agents out until the result is closed.
func (d dir) lock() (io.Closer, error) {
	l, err := disk.OS{}.Lock(d.path(lockName))
	if errors.Is(err, disk.ErrLocked) {
		return nil, fmt.Errorf("%w: %s", ErrRunning, d)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no directory %s", ErrNotEnrolled, d)
	}
	return l, err
}

// patience is how long a starting agent waits for the lock: "status" holds it for
// an instant.
const (
	patience     = 2 * time.Second
	patienceStep = 50 * time.Millisecond
)

// lockPatiently is lock for an agent that starts.
func (d dir) lockPatiently(ctx context.Context) (io.Closer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := time.NewTicker(patienceStep)
	defer again.Stop()
	for {
		l, err := d.lock()
		if !errors.Is(err, ErrRunning) {
			return l, err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (d dir) settings() (Settings, error) {
	b, err := d.read(settingsName)
	if errors.Is(err, fs.ErrNotExist) {
		return Settings{}, fmt.Errorf("%w: %s has no %s", ErrNotEnrolled, d, settingsName)
	}
	if err != nil {
		return Settings{}, err
	}
	var s Settings
	if err := json.Unmarshal(b, &s); err != nil {
		return Settings{}, fmt.Errorf("read %s: %w", d.path(settingsName), err)
	}
	return s, nil
}

// The kinds of keys that a device may have.
const (
	KeyEd25519 = "ed25519"
	KeyP256    = "p256" // for TLS stacks without ed25519, such as that of the AWS SDK v2
)

// key reads the device's key, or makes it: on the disk before anybody hears of
// it. A key that is there stays, whatever its kind.
func (d dir) key(kind string) (crypto.Signer, error) {
	b, err := d.read(keyName)
	if err == nil {
		return parseKey(b)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := newKey(kind)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, d.write(keyName, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func newKey(kind string) (crypto.Signer, error) {
	switch kind {
	case "", KeyEd25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case KeyP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return nil, fmt.Errorf("key type %q: want %s or %s", kind, KeyEd25519, KeyP256)
}

func parseKey(b []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%s: not a PEM private key", keyName)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyName, err)
	}
	switch key := k.(type) {
	case ed25519.PrivateKey:
		return key, nil
	case *ecdsa.PrivateKey:
		if key.Curve == elliptic.P256() {
			return key, nil
		}
	}
	return nil, fmt.Errorf("%s: a key of type %T, want ed25519 or ECDSA P-256", keyName, k)
}

// identity is everything that enrollment left in the directory.
type identity struct {
	Settings
	key  crypto.Signer
	cert *tls.Certificate
	ca   *x509.Certificate
	root []byte
}

func (d dir) identity() (identity, error) {
	s, err := d.settings()
	if err != nil {
		return identity{}, err
	}
	id := identity{Settings: s}
	b, err := d.read(keyName)
	if err != nil {
		return identity{}, err
	}
	if id.key, err = parseKey(b); err != nil {
		return identity{}, err
	}
	if id.cert, err = d.certificate(id.key); err != nil {
		return identity{}, err
	}
	if b, err = d.read(caName); err != nil {
		return identity{}, err
	}
	ca, err := agenthttp.ParseCertificates(b)
	if err != nil {
		return identity{}, fmt.Errorf("%s: %w", caName, err)
	}
	id.ca = ca[0]
	id.root, err = d.read(rootName)
	return id, err
}

func (d dir) certificate(key crypto.Signer) (*tls.Certificate, error) {
	b, err := d.read(certName)
	if err != nil {
		return nil, err
	}
	return tlsCertificate(b, key)
}

func tlsCertificate(chainPEM []byte, key crypto.Signer) (*tls.Certificate, error) {
	chain, err := agenthttp.ParseCertificates(chainPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certName, err)
	}
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}
