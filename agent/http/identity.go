package http

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// ErrIdentity is the class of errors about certificates that do not fit the
// device, its key or the pinned CA.
var ErrIdentity = errors.New("unusable device identity")

const maxChain = 4 // certificates in a device's chain, leaf included

// Identity is what enrollment gives a device, besides the key it made itself.
type Identity struct {
	DeviceID    string
	Hardware    string
	MQTTURL     string // mqtts://host:port
	Certificate []byte // PEM: the leaf, then its intermediates
	CA          []byte // PEM of the server's root CA, pinned by the token
	Root        []byte // the first TUF root, pinned by the token
}

// ParseCertificates reads a PEM file of 1 to 4 certificates, in order.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for rest := bytes.TrimSpace(text); len(rest) > 0; {
		block, after := pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%w: not a PEM file of certificates", ErrIdentity)
		}
		if len(chain) == maxChain {
			return nil, fmt.Errorf("%w: more than %d certificates in a chain", ErrIdentity, maxChain)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
		}
		chain, rest = append(chain, c), bytes.TrimSpace(after)
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("%w: an empty certificate file", ErrIdentity)
	}
	return chain, nil
}

// VerifyCertificate reports why a chain could not serve this device: its leaf
// must be for id and key, for client authentication, lead to ca and not be over
// at now. A leaf that begins after now is accepted: servers' clocks run ahead.
func VerifyCertificate(chain []*x509.Certificate, ca *x509.Certificate, key crypto.PublicKey, id string, now time.Time) error {
	leaf := chain[0]
	if leaf.Subject.CommonName != id {
		return fmt.Errorf("%w: the certificate is for %q, not for %q", ErrIdentity, printable(leaf.Subject.CommonName), id)
	}
	if k, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(key) {
		return fmt.Errorf("%w: the certificate is for another key", ErrIdentity)
	}
	at := now
	for _, c := range chain {
		if c.NotBefore.After(at) {
			at = c.NotBefore
		}
	}
	opts := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		CurrentTime:   at,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	opts.Roots.AddCert(ca)
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	return nil
}

// RenewAt returns when a certificate is to be renewed: from two thirds of its
// life on, spread over a further twelfth by its own bytes, so that a fleet
// enrolled in one day does not come back in one minute.
func RenewAt(leaf *x509.Certificate) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	sum := sha256.Sum256(leaf.Raw)
	part := float64(binary.BigEndian.Uint32(sum[:])) / (1 << 32)
	return leaf.NotBefore.Add(life*2/3 + time.Duration(part*float64(life/12)))
}

// certificateRequest makes the CSR: common name id, signed by key, which must be
// ed25519 or ECDSA P-256.
func certificateRequest(key crypto.Signer, id string) (string, error) {
	switch k := key.Public().(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return "", fmt.Errorf("%w: an ECDSA key must be on P-256", ErrIdentity)
		}
	default:
		return "", fmt.Errorf("%w: a key of type %T: want ed25519 or ECDSA P-256", ErrIdentity, k)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id}}, key)
	if err != nil {
		return "", fmt.Errorf("certificate request for %s: %w", id, err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}
