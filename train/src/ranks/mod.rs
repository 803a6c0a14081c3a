//! The processes that train one network together: each takes its share of every batch, and updates
//! its share of the weights.
//!
//! `mpirun` starts them. They communicate through MPI, or through NCCL between GPUs.

#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use candle_core::{Device, Tensor};

use crate::Error;

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

/// The environment variables in which launchers give the number of processes they have started.
const WORLD_SIZE: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];
/// Those in which they give the rank of this process on its machine.
const LOCAL_RANK: [&str; 2] = ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"];

/// The number in the first of these variables that is set, if one is. What is set and is no number is not
/// taken for a variable that is not there: several processes would each believe that they are alone.
fn from_environment(names: [&str; 2]) -> Result<Option<usize>, Error> {
    let Some((name, value)) = names.iter().find_map(|name| Some((name, std::env::var_os(name)?)))
    else {
        return Ok(None);
    };
    let number = value.to_str().and_then(|value| value.parse().ok());
    let value = value.to_string_lossy().into_owned();
    number.map(Some).ok_or_else(|| Error::Launcher { name: (*name).to_string(), value })
}

/// The rank of this process on its machine: GPU `cuda:N` of a config is used by the first process,
/// the GPUs after it by the others. A process that no launcher has started is the first.
///
/// # Errors
/// [`Error::Launcher`] if the launcher's variable is no number.
pub fn local_rank() -> Result<usize, Error> {
    Ok(from_environment(LOCAL_RANK)?.unwrap_or(0))
}

/// How many processes a launcher has started together with this one, itself included: 1 without one.
///
/// # Errors
/// As [`local_rank`], and of a number of 0.
pub(crate) fn started() -> Result<usize, Error> {
    match from_environment(WORLD_SIZE)? {
        Some(0) => Err(Error::Launcher { name: WORLD_SIZE.join(" or "), value: "0".into() }),
        Some(count) => Ok(count),
        None => Ok(1),
    }
}

impl Ranks {
    /// Joins the processes that a launcher has started with this one.
    ///
    /// # Errors
    /// If there are several, and this program cannot talk to them; [`Error::Launcher`].
    pub fn join() -> Result<Self, Error> {
        if started()? == 1 {
            return Ok(Self::Alone);
        }
        #[cfg(feature = "mpi")]
        return Ok(Self::Mpi(mpi::World::join()?));
        #[cfg(not(feature = "mpi"))]
        Err(Error::BuiltForOneProcess)
    }

    /// Prepares to exchange tensors of a device.
    ///
    /// # Errors
    /// If the processes cannot reach each other's devices.
    pub fn connect(&self, device: &Device) -> Result<(), Error> {
        let _ = device;
        match self {
            Self::Alone => Ok(()),
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.connect(device),
        }
    }

    /// The rank of this process, from 0.
    pub fn rank(&self) -> usize {
        match self {
            Self::Alone => 0,
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.rank(),
        }
    }

    /// How many processes there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Alone => 1,
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.count(),
        }
    }

    /// Whether this is the process that writes files and messages.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// The sum over all processes of their tensors, f32 of one shape.
    ///
    /// # Errors
    /// If a device refuses.
    pub fn all_reduce(&self, x: &Tensor) -> Result<Tensor, Error> {
        match self {
            Self::Alone => Ok(x.clone()),
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.all_reduce(x),
        }
    }

    /// The owner's tensor, f32, at every process; the others give one of its shape.
    ///
    /// # Errors
    /// If a device refuses.
    pub fn broadcast(&self, owner: usize, x: &Tensor) -> Result<Tensor, Error> {
        let _ = owner;
        match self {
            Self::Alone => Ok(x.clone()),
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.broadcast(owner, x),
        }
    }

    /// The sums over all processes of their numbers.
    pub fn all_reduce_scalars<const N: usize>(&self, numbers: [f64; N]) -> [f64; N] {
        match self {
            Self::Alone => numbers,
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.all_reduce_scalars(numbers),
        }
    }

    /// The bytes of all processes at the first; nothing elsewhere.
    pub fn gather(&self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        match self {
            Self::Alone => vec![bytes],
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.gather(bytes),
        }
    }

    /// Fails unless all processes have the same text, such as a digest of the weights.
    ///
    /// # Errors
    /// [`Error::RanksDiffer`].
    pub fn agree(&self, what: &str, text: &str) -> Result<(), Error> {
        let all = self.gather(text.as_bytes().to_vec());
        match all.iter().position(|other| *other != text.as_bytes()) {
            Some(rank) => Err(Error::RanksDiffer { what: what.to_string(), rank }),
            None => Ok(()),
        }
    }

    /// Waits until every process is here.
    pub fn barrier(&self) {
        self.all_reduce_scalars([0.0]);
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

/// The owner of each job of these sizes: the largest first, each to the rank that has least. All
/// processes find the same.
pub fn owners(sizes: &[u64], ranks: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|i| Reverse(sizes[*i]));
    // Of equal loads the first rank's.
    let mut loads: BinaryHeap<_> = (0..ranks.max(1)).map(|rank| Reverse((0u64, rank))).collect();
    let mut out = vec![0; sizes.len()];
    for i in order {
        let Some(Reverse((load, owner))) = loads.pop() else { break };
        out[i] = owner;
        loads.push(Reverse((load.saturating_add(sizes[i]), owner)));
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
        assert_eq!(
            (ranks.rank(), ranks.count(), ranks.all_reduce_scalars([1.5, 2.0])),
            (0, 1, [1.5, 2.0])
        );
        let x = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        assert_eq!(ranks.all_reduce(&x).unwrap().to_vec1::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(ranks.broadcast(0, &x).unwrap().to_vec1::<f32>().unwrap(), [1.0, 2.0]);
        ranks.agree("words", "same").unwrap();
        assert_eq!(ranks.gather(vec![1, 2]), [[1, 2]]);
    }
}
