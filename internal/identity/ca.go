// Package identity is the built-in certificate authority: a root that devices
// pin, an intermediate that issues device certificates and can do nothing else,
// and the server's own certificate.
//
// All keys are ECDSA P-256 (what the smallest TLS stacks know); device keys are
// ed25519 or P-256 and are never seen here. The files lie in one directory with
// mode 0600 and are made once, at random; there is no default key. It is not a
// general CA: no RSA, no names from requests, one profile for each use.
package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Lifetimes of certificates.
const (
	RootLife         = 20 * 365 * 24 * time.Hour
	IntermediateLife = 10 * 365 * 24 * time.Hour
	DeviceLife       = 90 * 24 * time.Hour
	ServerLife       = 365 * 24 * time.Hour
	// backdate lets in devices whose clock is a little behind.
	backdate = time.Hour
)

// CA signs certificates. Its methods may be called concurrently.
type CA struct {
	root, issuer       *x509.Certificate
	rootKey, issuerKey *ecdsa.PrivateKey
}

// Open loads the CA in dir, or makes a new one when the directory holds none. A
// directory with some of the files is an error, never repaired.
func Open(dir string, now time.Time) (*CA, error) {
	dir = filepath.Clean(dir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if len(entries) == 0 {
		if err := create(dir, now); err != nil {
			return nil, fmt.Errorf("create CA in %s: %w", dir, err)
		}
	}
	ca := &CA{}
	if ca.root, ca.rootKey, err = load(dir, "root"); err != nil {
		return nil, fmt.Errorf("load CA: %w; restore %s from a backup, every device trusts this CA alone", err, dir)
	}
	if ca.issuer, ca.issuerKey, err = load(dir, "devices"); err != nil {
		return nil, fmt.Errorf("load CA: %w; restore %s from a backup, every device trusts this CA alone", err, dir)
	}
	if err := ca.issuer.CheckSignatureFrom(ca.root); err != nil {
		return nil, fmt.Errorf("load CA: devices.pem was not issued by root.pem: %w", err)
	}
	return ca, nil
}

// create makes a CA beside dir and moves it there whole: a crash leaves all of
// it or none.
func create(dir string, now time.Time) error {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	made, err := os.MkdirTemp(parent, ".new-ca-*") // mode 0700
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(made) }() // finds nothing after the rename
	if err := fill(made, now); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) { // it is empty
		return err
	}
	if err := os.Rename(made, dir); err != nil {
		return err
	}
	return syncDir(parent)
}

func fill(dir string, now time.Time) error {
	rootKey, err := newKey()
	if err != nil {
		return err
	}
	root := &x509.Certificate{
		Subject:  pkix.Name{CommonName: "otad root CA " + now.UTC().Format("2006-01-02T15:04:05Z")},
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true,
		MaxPathLen: 1,
	}
	rootDER, err := sign(root, root, rootKey.Public(), rootKey, now, RootLife)
	if err != nil {
		return err
	}
	if root, err = x509.ParseCertificate(rootDER); err != nil {
		return err
	}
	issuerKey, err := newKey()
	if err != nil {
		return err
	}
	issuer := &x509.Certificate{
		Subject:  pkix.Name{CommonName: "otad devices CA"},
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true,
		MaxPathLenZero: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	issuerDER, err := sign(issuer, root, issuerKey.Public(), rootKey, now, IntermediateLife)
	if err != nil {
		return err
	}
	if err := store(dir, "root", rootDER, rootKey); err != nil {
		return err
	}
	return store(dir, "devices", issuerDER, issuerKey)
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// sign fills in serial and dates of the template and signs it.
func sign(template, parent *x509.Certificate, public any, key *ecdsa.PrivateKey, now time.Time, life time.Duration) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = now.Add(-backdate), now.Add(life)
	return x509.CreateCertificate(rand.Reader, template, parent, public, key)
}

func store(dir, name string, der []byte, key *ecdsa.PrivateKey) error {
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := WriteFile(filepath.Join(dir, name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})); err != nil {
		return err
	}
	return WriteFile(filepath.Join(dir, name+".pem"), encodeCert(der))
}

func load(dir, name string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key"))
	if err != nil {
		return nil, nil, err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("%s.key is not an ECDSA key", name)
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	return cert, key, err
}

// WriteFile writes a private file whole or not at all: temporary name, sync,
// rename, sync of the directory.
func WriteFile(path string, b []byte) error { return writeFile(path, b, 0o600) }

// WritePublicFile is WriteFile for what everybody may read.
func WritePublicFile(path string, b []byte) error { return writeFile(path, b, 0o644) }

func writeFile(path string, b []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // fails after the rename, as it should
	if _, err := f.Write(b); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Chmod(mode); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// Issue makes a 90-day client certificate for the request's key. Nothing but
// the key is taken from the request.
func (ca *CA) Issue(csr *x509.CertificateRequest, deviceID string, now time.Time) ([]byte, error) {
	return ca.IssueUntil(csr, deviceID, now, now.Add(DeviceLife))
}

// IssueUntil is Issue for a certificate that ends then.
func (ca *CA) IssueUntil(csr *x509.CertificateRequest, name string, now, until time.Time) ([]byte, error) {
	leaf := &x509.Certificate{
		Subject:  pkix.Name{CommonName: name},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := sign(leaf, ca.issuer, csr.PublicKey, ca.issuerKey, now, until.Sub(now))
	if err != nil {
		return nil, err
	}
	return append(encodeCert(der), encodeCert(ca.issuer.Raw)...), nil
}

// RootPEM returns the certificate that everything chains to.
func (ca *CA) RootPEM() []byte { return encodeCert(ca.root.Raw) }

// RootSHA256 is the digest of the root certificate in DER, which devices pin.
func (ca *CA) RootSHA256() [32]byte { return sha256.Sum256(ca.root.Raw) }

// Devices is the pool that client certificates must chain to: the root, with
// the intermediate known so that a device may leave it out.
func (ca *CA) Devices() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.issuer)
	return pool
}

// Server returns a TLS configuration for this server's names and addresses. Its
// certificate is made in memory and made anew at two thirds of its life; the
// chain holds the root, so that an enrolling device can compare it with its pin.
func (ca *CA) Server(hosts []string, now func() time.Time) *tls.Config {
	current := ca.renewed("otad", hosts, x509.ExtKeyUsageServerAuth, now)
	return &tls.Config{
		MinVersion:     tls.VersionTLS12, // what older device stacks can do; 1.3 where both can
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return current() },
	}
}

// Client returns the TLS configuration with which otad itself connects to an
// external broker that has a certificate of this CA, under a name that no device
// may have. Its certificate is made anew as Server's is.
func (ca *CA) Client(name string, now func() time.Time) *tls.Config {
	current := ca.renewed(name, nil, x509.ExtKeyUsageClientAuth, now)
	roots := x509.NewCertPool()
	roots.AddCert(ca.root)
	return &tls.Config{
		MinVersion:           tls.VersionTLS12,
		RootCAs:              roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return current() },
	}
}

// renewed returns a func that gives a certificate in at most two thirds of its
// life.
func (ca *CA) renewed(name string, hosts []string, usage x509.ExtKeyUsage, now func() time.Time) func() (*tls.Certificate, error) {
	var mu sync.Mutex
	var cert tls.Certificate
	var made time.Time
	return func() (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if t := now(); made.IsZero() || t.Sub(made) > ServerLife*2/3 {
			fresh, err := ca.endpoint(name, hosts, []x509.ExtKeyUsage{usage}, t)
			if err != nil {
				return nil, err
			}
			cert, made = fresh, t
		}
		return &cert, nil
	}
}

func (ca *CA) endpoint(name string, hosts []string, usage []x509.ExtKeyUsage, now time.Time) (tls.Certificate, error) {
	key, err := newKey()
	if err != nil {
		return tls.Certificate{}, err
	}
	cert := &x509.Certificate{
		Subject:  pkix.Name{CommonName: name},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage, BasicConstraintsValid: true,
	}
	for _, h := range slices.Compact(slices.Sorted(slices.Values(hosts))) {
		if ip := net.ParseIP(h); ip != nil {
			cert.IPAddresses = append(cert.IPAddresses, ip)
		} else {
			cert.DNSNames = append(cert.DNSNames, h)
		}
	}
	der, err := sign(cert, ca.root, key.Public(), ca.rootKey, now, ServerLife)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der, ca.root.Raw}, PrivateKey: key}, nil
}

// WriteServer writes DIR/NAME.pem, DIR/NAME.key and DIR/ca.pem for a server that
// is not otad itself, such as an external broker. Everybody may read all but the key.
func (ca *CA) WriteServer(dir, name string, hosts []string, now time.Time) error {
	pair, err := ca.endpoint(name, hosts, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, now)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := WriteFile(filepath.Join(dir, name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})); err != nil {
		return err
	}
	if err := WritePublicFile(filepath.Join(dir, name+".pem"), encodeCert(pair.Certificate[0])); err != nil {
		return err
	}
	return WritePublicFile(filepath.Join(dir, "ca.pem"), ca.RootPEM())
}
