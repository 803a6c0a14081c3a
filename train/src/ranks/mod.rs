//! The processes that train one network together: each takes its part of every batch, and moves its
//! part of the weights.
//!
//! `mpirun` starts them. What they exchange goes through MPI, or through NCCL between GPUs.

#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;

use anyhow::{Result, bail};
use candle_core::{Device, Tensor};

/// The processes of a run, and which of them this is.
#[derive(Default)]
pub enum Ranks {
    /// A single process.
    #[default]
    Alone,
    /// One of several that `mpirun` has started.
    #[cfg(feature = "mpi")]
    Mpi(mpi::World),
}

/// The environment variables by which launchers say how many processes they have started.
const COUNTS: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];
/// Those by which they say which of the processes of its machine this one is.
const LOCAL: [&str; 2] = ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"];

fn said(names: [&str; 2]) -> Option<usize> {
    names.iter().find_map(|name| std::env::var(name).ok()?.parse().ok())
}

/// Which of the processes of its machine this one is: GPU `cuda:N` of a config is the first one's,
/// those that follow belong to the others.
pub fn local_rank() -> usize {
    said(LOCAL).unwrap_or(0)
}

impl Ranks {
    /// Joins the processes that a launcher has started with this one.
    ///
    /// # Errors
    /// If there are several, and this program cannot talk to them.
    pub fn join() -> Result<Self> {
        if said(COUNTS).is_none_or(|count| count < 2) {
            return Ok(Self::Alone);
        }
        #[cfg(feature = "mpi")]
        return Ok(Self::Mpi(mpi::World::join()?));
        #[cfg(not(feature = "mpi"))]
        bail!(
            "mpirun has started several processes, and this program is built for one; build it \
             with --features mpi"
        )
    }

    /// Gets ready to exchange tensors of a device.
    ///
    /// # Errors
    /// If the processes cannot reach each other's devices.
    pub fn connect(&self, device: &Device) -> Result<()> {
        let _ = device;
        match self {
            Self::Alone => Ok(()),
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.connect(device),
        }
    }

    /// Which one this is, from 0.
    pub fn rank(&self) -> usize {
        match self {
            Self::Alone => 0,
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.rank(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Alone => 1,
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.count(),
        }
    }

    /// Whether this is the one that writes and speaks.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// The sum of everybody's tensors, f32 of one shape.
    ///
    /// # Errors
    /// If a device refuses.
    pub fn sum(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Alone => Ok(x.clone()),
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.sum(x),
        }
    }

    /// The owner's tensor, f32; others give one of its shape.
    ///
    /// # Errors
    /// If a device refuses.
    pub fn of(&self, owner: usize, x: &Tensor) -> Result<Tensor> {
        let _ = owner;
        match self {
            Self::Alone => Ok(x.clone()),
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.of(owner, x),
        }
    }

    /// The sums of everybody's numbers.
    pub fn add<const N: usize>(&self, numbers: [f64; N]) -> [f64; N] {
        match self {
            Self::Alone => numbers,
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.add(numbers),
        }
    }

    /// Everybody's bytes at the first; nothing elsewhere.
    pub fn gather(&self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        match self {
            Self::Alone => vec![bytes],
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.gather(bytes),
        }
    }

    /// Fails unless everybody has the same text, such as a digest of the weights.
    ///
    /// # Errors
    /// If not.
    pub fn agree(&self, what: &str, text: &str) -> Result<()> {
        let all = self.gather(text.as_bytes().to_vec());
        let differs = all.iter().position(|other| *other != text.as_bytes());
        if let Some(rank) = differs {
            bail!(
                "{what} of rank {rank} differ from those of rank 0: the processes do not run alike"
            )
        }
        Ok(())
    }

    /// Waits until everybody is here.
    pub fn wait(&self) {
        self.add([0.0]);
    }

    /// Ends all processes.
    pub fn abort(&self, code: u8) -> ! {
        match self {
            Self::Alone => std::process::exit(i32::from(code)),
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.abort(code),
        }
    }
}

/// The owner of each of some jobs of these sizes: the largest first, each to who has least.
/// Everybody finds the same.
pub fn owners(sizes: &[u64], ranks: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(sizes[*i]));
    let (mut load, mut out) = (vec![0; ranks.max(1)], vec![0; sizes.len()]);
    for i in order {
        let owner = (0..load.len()).min_by_key(|rank| load[*rank]).unwrap_or(0);
        load[owner] += sizes[i];
        out[i] = owner;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_shared_out_evenly() {
        assert_eq!(owners(&[5, 1, 4, 1, 3], 2), [0, 0, 1, 0, 1]);
        assert_eq!(owners(&[7, 7, 7], 1), [0, 0, 0]);
        assert!(owners(&[], 3).is_empty());
        for ranks in 1..6 {
            let sizes: Vec<u64> = (0..40).map(|i| 1 + i * i % 17).collect();
            let mut load = vec![0; ranks];
            owners(&sizes, ranks).iter().zip(&sizes).for_each(|(owner, size)| load[*owner] += size);
            let (least, most) = (load.iter().min().unwrap(), load.iter().max().unwrap());
            assert!(most - least <= 17, "{load:?}");
        }
    }

    #[test]
    fn alone_everything_stays_as_it_is() {
        let ranks = Ranks::default();
        assert_eq!((ranks.rank(), ranks.count(), ranks.add([1.5, 2.0])), (0, 1, [1.5, 2.0]));
        let x = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        assert_eq!(ranks.sum(&x).unwrap().to_vec1::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(ranks.of(0, &x).unwrap().to_vec1::<f32>().unwrap(), [1.0, 2.0]);
        ranks.agree("words", "same").unwrap();
        assert_eq!(ranks.gather(vec![1, 2]), [[1, 2]]);
    }
}
