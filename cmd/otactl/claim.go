package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
)

// claimFiles is the key of a claim certificate, made here and sent nowhere, and
// where the two files go.
type claimFiles struct {
	certificate, key string // paths
	keyPEM, csr      []byte
}

// newClaim makes a P-256 key, which every device stack can use, for NAME.pem and
// NAME.key; neither may exist.
func newClaim(name string) (*claimFiles, error) {
	c := &claimFiles{certificate: name + ".pem", key: name + ".key"}
	for _, path := range []string{c.certificate, c.key} {
		if taken, err := exists(path); err != nil {
			return nil, err
		} else if taken {
			return nil, hint(fail(exitConflict, "%s exists", path), "another --claim-cert NAME, or remove the file")
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	c.keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	c.csr = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})
	return c, nil
}

// write stores the key and the certificate that the server issued for it.
func (c *claimFiles) write(certificate []byte) error {
	if block, _ := pem.Decode(certificate); block == nil || block.Type != "CERTIFICATE" {
		return fail(exitFailed, "the server sent no claim certificate; is it older than this otactl?")
	}
	if err := writeNewFile(c.key, c.keyPEM); err != nil {
		return fmt.Errorf("write claim key: %w", err)
	}
	return writeNewFile(c.certificate, certificate)
}
