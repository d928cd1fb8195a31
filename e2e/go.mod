module github.com/bulwark-mesh/bulwark/e2e

go 1.26
