package fleet

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
)

// Limits of public keys.
const (
	MaxKeysBytes = 64 << 10 // of one file of keys
	MinRSABits   = 2048
	MaxRSABits   = 8192
)

// The signature algorithms of JWTs (RFC 7518, RFC 8037), each for one kind of
// key and no other.
const (
	algEdDSA = "EdDSA"
	algES256 = "ES256"
	algRS256 = "RS256"
)

// ParseKeys reads public keys for JWTs: PEM blocks PUBLIC KEY, or a JWKS
// (RFC 7517). ed25519, ECDSA P-256 or RSA of MinRSABits to MaxRSABits. A private
// key is refused: it has no business on a server.
func ParseKeys(b []byte) ([]IssuerKey, error) {
	if len(b) > MaxKeysBytes {
		return nil, badKeys("%d bytes, at most %d", len(b), MaxKeysBytes)
	}
	parse := parsePEMKeys
	if trimmed := bytes.TrimSpace(b); len(trimmed) > 0 && trimmed[0] == '{' {
		parse = parseJWKS
	}
	keys, err := parse(b)
	switch {
	case err != nil:
		return nil, err
	case len(keys) == 0:
		return nil, badKeys("none found; want PEM blocks PUBLIC KEY, or a JWKS")
	case len(keys) > MaxIssuerKeys:
		return nil, badKeys("%d of them, at most %d", len(keys), MaxIssuerKeys)
	}
	return keys, nil
}

func badKeys(format string, args ...any) error {
	return fmt.Errorf("%w: public keys: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

func parsePEMKeys(b []byte) ([]IssuerKey, error) {
	var keys []IssuerKey
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			if len(bytes.TrimSpace(b)) > 0 {
				return nil, badKeys("text that is neither PEM nor a JWKS")
			}
			return keys, nil
		}
		b = rest
		switch {
		case strings.Contains(block.Type, "PRIVATE"):
			return nil, badKeys("this is a private key; give the public one, and keep this one where it was")
		case block.Type != "PUBLIC KEY":
			return nil, badKeys("PEM block %q, want PUBLIC KEY", block.Type)
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, badKeys("%v", err)
		}
		text, err := keyPEM(key)
		if err != nil {
			return nil, err
		}
		keys = append(keys, IssuerKey{PEM: text})
	}
}

// keyPEM is the one form in which a key is stored; it refuses keys that no JWT
// is verified with.
func keyPEM(key any) (string, error) {
	if algOf(key) == "" {
		return "", badKeys("%T: want ed25519, ECDSA P-256 or RSA of %d to %d bits", key, MinRSABits, MaxRSABits)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", badKeys("%v", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
}

// publicKey reads what keyPEM wrote.
func publicKey(text string) (any, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, fmt.Errorf("stored key is not PEM")
	}
	return x509.ParsePKIXPublicKey(block.Bytes)
}

// algOf returns the one algorithm that the key is for, empty: none.
func algOf(key any) string {
	switch k := key.(type) {
	case ed25519.PublicKey:
		return algEdDSA
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return algES256
		}
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n >= MinRSABits && n <= MaxRSABits && k.E >= 3 && k.E%2 == 1 {
			return algRS256
		}
	}
	return ""
}

// jwk is one key of a JWKS (RFC 7517, 7518, 8037).
type jwk struct {
	Kty string `json:"kty"`
	Kid string `json:"kid"`
	Use string `json:"use"`
	Alg string `json:"alg"`
	Crv string `json:"crv"`
	X   string `json:"x"`
	Y   string `json:"y"`
	N   string `json:"n"`
	E   string `json:"e"`
	D   string `json:"d"` // of a private key
	K   string `json:"k"` // of a symmetric key
}

func parseJWKS(b []byte) ([]IssuerKey, error) {
	var set struct {
		jwk
		Keys []jwk `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, badKeys("JWKS: %v", err)
	}
	if set.Kty != "" { // one key by itself
		set.Keys = append(set.Keys, set.jwk)
	}
	var keys []IssuerKey
	for _, j := range set.Keys {
		if j.Use == "enc" {
			continue // not for signatures
		}
		key, err := j.key()
		if err != nil {
			return nil, badKeys("JWKS key %.140q: %v", j.Kid, err)
		}
		if len(j.Kid) > MaxKeyIDBytes {
			return nil, badKeys("kid of %d bytes, at most %d", len(j.Kid), MaxKeyIDBytes)
		}
		text, err := keyPEM(key)
		if err != nil {
			return nil, err
		}
		if j.Alg != "" && j.Alg != algOf(key) {
			return nil, badKeys("JWKS key %.140q is for %.40q, want %s", j.Kid, j.Alg, algOf(key))
		}
		keys = append(keys, IssuerKey{KeyID: j.Kid, PEM: text})
	}
	return keys, nil
}

func (j jwk) key() (any, error) {
	if j.D != "" || j.K != "" || j.Kty == "oct" {
		return nil, fmt.Errorf("a private or symmetric key; give the public one")
	}
	number := func(s string) ([]byte, error) {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil || len(b) == 0 {
			return nil, fmt.Errorf("a number that is not base64url")
		}
		return b, nil
	}
	switch {
	case j.Kty == "OKP" && j.Crv == "Ed25519":
		x, err := number(j.X)
		if err != nil || len(x) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("x is no ed25519 key")
		}
		return ed25519.PublicKey(x), nil
	case j.Kty == "EC" && j.Crv == "P-256":
		x, errX := number(j.X)
		y, errY := number(j.Y)
		if errX != nil || errY != nil || len(x) != 32 || len(y) != 32 {
			return nil, fmt.Errorf("x and y are no point of P-256")
		}
		return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
	case j.Kty == "RSA":
		n, errN := number(j.N)
		e, errE := number(j.E)
		if errN != nil || errE != nil || len(n) > MaxRSABits/8+1 || len(e) > 4 {
			return nil, fmt.Errorf("n and e are no RSA key")
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}, nil
	}
	return nil, fmt.Errorf("kty %.20q, crv %.20q: want OKP Ed25519, EC P-256 or RSA", j.Kty, j.Crv)
}
