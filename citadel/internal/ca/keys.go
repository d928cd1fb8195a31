package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"fmt"
	"math/big"
)

// KeyError is why a public key is refused.
type KeyError struct{ Reason string }

func (e KeyError) Error() string { return "weak or unsupported key: " + e.Reason }

// fermatRounds is how many steps of Fermat's factorisation a modulus must stand: primes that were chosen close to each
// other fall within a few.
const fermatRounds = 110

// CheckKey refuses keys that nobody should have: small or absurdly large RSA, factorable moduli, odd exponents, curves
// other than P-256 and P-384. It is cheap for every input, because it comes before any signature is checked.
func CheckKey(public crypto.PublicKey) error {
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		if p.Curve != elliptic.P256() && p.Curve != elliptic.P384() {
			return KeyError{"elliptic curve " + p.Curve.Params().Name + "; use P-256 or P-384"}
		}
		if _, err := p.ECDH(); err != nil {
			return KeyError{"point is not on the curve"}
		}
		return nil
	case *rsa.PublicKey:
		return checkRSA(p)
	default:
		return KeyError{fmt.Sprintf("type %T; use ECDSA or RSA", public)}
	}
}

func checkRSA(p *rsa.PublicKey) error {
	if bits := p.N.BitLen(); bits < 2048 || bits > 4096 || bits%8 != 0 {
		return KeyError{fmt.Sprintf("RSA of %d bits; use 2048 to 4096", bits)}
	}
	if p.E != 65537 {
		return KeyError{fmt.Sprintf("RSA exponent %d; use 65537", p.E)}
	}
	if new(big.Int).GCD(nil, nil, p.N, smallPrimes).Cmp(big.NewInt(1)) != 0 {
		return KeyError{"RSA modulus has a small factor"}
	}
	if rocaWeak(p.N) {
		return KeyError{"RSA modulus has the ROCA fingerprint"}
	}
	if fermatWeak(p.N) {
		return KeyError{"RSA primes are close to each other"}
	}
	return nil
}

// smallPrimes is the product of the primes below 752 (2 included).
var smallPrimes = func() *big.Int {
	product := big.NewInt(1)
	for n := int64(2); n < 752; n++ {
		if p := big.NewInt(n); p.ProbablyPrime(0) {
			product.Mul(product, p)
		}
	}
	return product
}()

func fermatWeak(n *big.Int) bool {
	a := new(big.Int).Sqrt(n)
	one, b2, b := big.NewInt(1), new(big.Int), new(big.Int)
	for range fermatRounds {
		if b2.Mul(a, a).Sub(b2, n); b2.Sign() >= 0 {
			if b.Sqrt(b2); new(big.Int).Mul(b, b).Cmp(b2) == 0 {
				return true
			}
		}
		a.Add(a, one)
	}
	return false
}

// rocaPrimes are the primes in whose multiplicative groups a key made by the flawed library (CVE-2017-15361) is a power
// of 65537.
var rocaPrimes = []int64{
	3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113,
	127, 131, 137, 139, 149, 151, 157, 163, 167,
}

var rocaSubgroups = func() []map[int64]bool {
	groups := make([]map[int64]bool, len(rocaPrimes))
	for i, p := range rocaPrimes {
		groups[i] = map[int64]bool{}
		for x := int64(1); !groups[i][x]; x = x * 65537 % p {
			groups[i][x] = true
		}
	}
	return groups
}()

func rocaWeak(n *big.Int) bool {
	rem := new(big.Int)
	for i, p := range rocaPrimes {
		if !rocaSubgroups[i][rem.Mod(n, big.NewInt(p)).Int64()] {
			return false
		}
	}
	return true
}
