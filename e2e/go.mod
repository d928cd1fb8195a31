module github.com/bulwark-mesh/bulwark/e2e

go 1.26.0

require (
	github.com/gopacket/gopacket v1.7.7
	github.com/spf13/cobra v1.10.2
	golang.org/x/sys v0.49.0
)

require (
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/spf13/pflag v1.0.10 // indirect
)

replace (
	github.com/bulwark-mesh/bulwark/manifests => ../manifests
	github.com/bulwark-mesh/bulwark/pkg => ../pkg
)
