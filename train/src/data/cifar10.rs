//! CIFAR-10.
