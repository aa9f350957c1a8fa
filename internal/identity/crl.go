package identity

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"time"
)

// RevocationLists signs the list of revoked device certificates, and an empty one
// of the root, which a broker needs beside it: otad's own certificate is the
// root's, and who checks lists wants one of every issuer. Numbers are the date in
// seconds, so that they rise on replicas too (RFC 5280, section 5.2.3).
func (ca *CA) RevocationLists(revoked []x509.RevocationListEntry, issued, expires time.Time) ([]byte, error) {
	devices, err := revocationList(ca.issuer, ca.issuerKey, revoked, issued, expires)
	if err != nil {
		return nil, err
	}
	root, err := revocationList(ca.root, ca.rootKey, nil, issued, expires)
	return append(devices, root...), err
}

func revocationList(issuer *x509.Certificate, key *ecdsa.PrivateKey, revoked []x509.RevocationListEntry, issued, expires time.Time) ([]byte, error) {
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(issued.Unix()), ThisUpdate: issued, NextUpdate: expires, RevokedCertificateEntries: revoked,
	}, issuer, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), nil
}

// Stand-ins live just long enough for one connection.
const standInLife = 10 * time.Minute

// StandIn returns the TLS configuration with which otad connects to an external
// broker in a device's place, to end its session. It is made by whoever holds the
// CA's key and could be anybody anyway.
func (ca *CA) StandIn(deviceID string, now time.Time) (*tls.Config, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	chain, err := ca.IssueUntil(&x509.CertificateRequest{PublicKey: key.Public()}, deviceID, now, now.Add(standInLife))
	if err != nil {
		return nil, err
	}
	cert := tls.Certificate{PrivateKey: key}
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.root)
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{cert}}, nil
}
