package mesh

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// longSecretPrefix begins the names of Secrets of accounts that are too long for SecretPrefix. No other account's Secret can
// have such a name.
const longSecretPrefix = "bulwark-long."

// maxObjectName is what Kubernetes admits, in bytes.
const maxObjectName = 253

// SecretName returns the name of an account's workload Secret: SecretPrefix and the account's name. Names of accounts have up
// to 253 bytes; for those of more than 245 it is "bulwark-long." and the SHA-256 of the account's name in hexadecimal.
func SecretName(account string) string {
	if name := SecretPrefix + account; len(name) <= maxObjectName {
		return name
	}
	sum := sha256.Sum256([]byte(account))
	return longSecretPrefix + hex.EncodeToString(sum[:])
}

// IsSecretName reports whether a workload Secret may have the name.
func IsSecretName(name string) bool {
	return len(name) > len(SecretPrefix) && strings.HasPrefix(name, SecretPrefix) || strings.HasPrefix(name, longSecretPrefix)
}

// SecretAccount returns the account that a workload Secret of that name is for. The name tells it, unless it is a hash: then
// it is the one of the given accounts, such as the Secret's owner, whose Secret has that name. It is empty if none has.
func SecretAccount(name string, accounts ...string) string {
	if account, ok := strings.CutPrefix(name, SecretPrefix); ok {
		return account
	}
	for _, account := range accounts {
		if SecretName(account) == name {
			return account
		}
	}
	return ""
}
